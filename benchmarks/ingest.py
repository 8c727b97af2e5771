"""How many volumes a second are read from DICOM, beside SimpleITK and MONAI on the same files.

Ours finds the series in all files and decodes them in processes with limits on memory and time.
SimpleITK (GetGDCMSeriesFileNames, ImageSeriesReader) and MONAI (PydicomReader) are told each
series' folder, and parse in the process that asks. Ratios are medians over turns.
"""

import argparse
import json
import logging
import resource
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import SimpleITK as sitk
from monai.data.image_reader import PydicomReader
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import UID, ExplicitVRLittleEndian, MRImageStorage

from grandrounds.data.dicom.instance import Instance
from grandrounds.data.dicom.parse import DicomReader
from grandrounds.data.dicom.series import find_series

SERIES, TURNS = 6, 5
SHAPE = (256, 256, 60)
ROOT = "1.2.826.0.1.3680043.8.498"


def write(folder: Path, number: int) -> None:
    folder.mkdir(parents=True)
    generator = np.random.default_rng(number)
    shuffled = generator.permutation(SHAPE[2])
    for place, k in enumerate(shuffled):
        pixels = generator.integers(0, 2000, SHAPE[:2], dtype=np.int16)
        slice_of(number, int(k), pixels).save_as(folder / f"{place:03d}.dcm")


def slice_of(number: int, k: int, pixels: np.ndarray) -> FileDataset:
    meta = FileMetaDataset()
    meta.TransferSyntaxUID, meta.MediaStorageSOPClassUID = ExplicitVRLittleEndian, MRImageStorage
    meta.MediaStorageSOPInstanceUID = UID(f"{ROOT}.{number}.{k + 1}")
    found = FileDataset("", {}, file_meta=meta, preamble=b"\0" * 128)
    found.SOPClassUID, found.SOPInstanceUID = MRImageStorage, meta.MediaStorageSOPInstanceUID
    found.SeriesInstanceUID, found.StudyInstanceUID = f"{ROOT}.{number}", ROOT
    found.PatientID, found.Modality, found.InstanceNumber = f"P{number}", "MR", k + 1
    found.ImageType, found.SeriesDescription = ["ORIGINAL", "PRIMARY", "M"], "t1"
    found.ScanningSequence, found.SequenceVariant = ["GR", "IR"], ["SP", "MP"]
    found.RepetitionTime, found.EchoTime, found.InversionTime = 2300, 3, 900
    found.Rows, found.Columns = pixels.shape
    found.PixelSpacing, found.SliceThickness = [1, 1], 1
    found.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
    found.ImagePositionPatient = [-128, -128, k]
    found.SamplesPerPixel, found.PhotometricInterpretation = 1, "MONOCHROME2"
    found.BitsAllocated, found.BitsStored, found.HighBit = 16, 16, 15
    found.PixelRepresentation, found.PixelData = 1, pixels.tobytes()
    return found


def ours(reader: DicomReader, root: Path) -> None:
    found = reader.headers(sorted(root.rglob("*.dcm")))
    series = find_series(each for each in found if isinstance(each, Instance)).series
    assert len(series) == SERIES
    for each in series:
        assert reader.volume(each).voxels.shape == SHAPE


def simple_itk(root: Path) -> None:
    for folder in sorted(root.iterdir()):
        reader = sitk.ImageSeriesReader()
        reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(folder)))
        image = sitk.GetArrayFromImage(reader.Execute()).astype(np.float32)
        assert image.shape == SHAPE[::-1]


def monai(root: Path) -> None:
    for folder in sorted(root.iterdir()):
        reader = PydicomReader()
        image, _ = reader.get_data(reader.read(str(folder)))
        assert image.astype(np.float32).shape == SHAPE


def processor_seconds() -> float:
    own, children = (resource.getrusage(who) for who in (0, resource.RUSAGE_CHILDREN))
    return own.ru_utime + own.ru_stime + children.ru_utime + children.ru_stime


def processor(root: Path) -> dict[str, float]:
    """Return the processor's seconds for one reading, without the start of ours."""
    with DicomReader() as reader:
        ours(reader, root)
        start = processor_seconds()
    once = processor_seconds() - start  # of the processes that have ended: start and one reading
    start = processor_seconds()
    with DicomReader() as reader:
        for _ in range(TURNS + 1):
            ours(reader, root)
    seconds = {"ours": (processor_seconds() - start - once) / TURNS}
    for name, read in (("SimpleITK", simple_itk), ("MONAI", monai)):
        start = processor_seconds()
        for _ in range(TURNS):
            read(root)
        seconds[name] = (processor_seconds() - start) / TURNS
    return seconds


def measure(root: Path, reader: DicomReader) -> dict[str, list[float]]:
    readers: dict[str, Callable[[Path], None]] = {
        "ours": partial(ours, reader),
        "SimpleITK": simple_itk,
        "MONAI": monai,
    }
    seconds: dict[str, list[float]] = {name: [] for name in readers}
    for turn in range(TURNS + 1):
        for name, read in readers.items():
            start = time.perf_counter()
            read(root)
            if turn:  # the first fills the system's cache of files
                seconds[name].append(time.perf_counter() - start)
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true", help="print one object of ratios")
    as_json = parser.parse_args().json
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        for number in range(1, SERIES + 1):
            write(root / str(number), number)
        with DicomReader() as reader:  # its processes start in the turn that is left out
            seconds = measure(root, reader)
        busy = processor(root)
    ratios = {
        f"as_fast_as_{name}": round(
            statistics.median(b / a for a, b in zip(seconds["ours"], each, strict=True)), 3
        )
        for name, each in seconds.items()
        if name != "ours"
    }
    if as_json:
        print(json.dumps(ratios))
        return
    print(
        f"{SERIES} series of {SHAPE[0]} x {SHAPE[1]} x {SHAPE[2]}, one file a slice, {TURNS} turns"
    )
    for name, each in seconds.items():
        middle = statistics.median(each)
        print(
            f"{name:>10}  {middle:6.2f} s  {SERIES / middle:6.2f} volumes/s  "
            f"{busy[name]:6.2f} s of processors"
        )
    print("; ".join(f"{name} {ratio}" for name, ratio in ratios.items()))


if __name__ == "__main__":
    main()
