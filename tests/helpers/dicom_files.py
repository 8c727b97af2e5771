"""DICOM files as a scanner writes them, from voxels and an affine that a test knows."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.uid import UID, ExplicitVRLittleEndian, MRImageStorage

ROOT = "1.2.826.0.1.3680043.8.498"
LPS = np.diag([-1.0, -1.0, 1.0, 1.0])
AXIAL = np.diag([-1.0, -1.0, 1.0, 1.0])  # NIfTI's affine of a plain axial series of 1 mm
MPRAGE = {
    "Modality": "MR",
    "ScanningSequence": ["GR", "IR"],
    "SequenceVariant": ["SK", "SP", "MP"],
    "MRAcquisitionType": "3D",
    "RepetitionTime": 2300,
    "EchoTime": 2.98,
    "InversionTime": 900,
    "FlipAngle": 9,
    "MagneticFieldStrength": 3,
    "ImageType": ["ORIGINAL", "PRIMARY", "M", "ND"],
    "Manufacturer": "SIEMENS",
    "SeriesDescription": "t1_mprage_sag",
}


def uid(*numbers: int) -> str:
    """A UID that is the same in every run."""
    return ".".join([ROOT, *map(str, numbers)])


def slice_dataset(
    pixels: NDArray[Any], affine: NDArray[np.float64], k: int, **elements: Any
) -> FileDataset:
    """Slice k of a volume with this affine (right, anterior, superior): pixels (row, column)."""
    meta = FileMetaDataset()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    meta.MediaStorageSOPClassUID = MRImageStorage
    found = FileDataset("", {}, file_meta=meta, preamble=b"\0" * 128)
    lps = LPS @ affine
    sizes = np.linalg.norm(lps[:3, :3], axis=0)
    stored: dict[str, Any] = {
        "SOPClassUID": MRImageStorage,
        "SOPInstanceUID": uid(1, 1, k + 1),
        "SeriesInstanceUID": uid(1, 1),
        "StudyInstanceUID": uid(1),
        "PatientID": "P1",
        "PatientName": "Doe^Jane",
        "InstanceNumber": k + 1,
        "Rows": pixels.shape[0],
        "Columns": pixels.shape[1],
        "PixelSpacing": [digits(sizes[1]), digits(sizes[0])],
        "SliceThickness": digits(sizes[2]),
        "ImageOrientationPatient": [
            digits(each) for each in (*(lps[:3, 0] / sizes[0]), *(lps[:3, 1] / sizes[1]))
        ],
        "ImagePositionPatient": [digits(each) for each in (lps @ [0, 0, k, 1])[:3]],
        **pixel_elements(pixels),
        **MPRAGE,
        **elements,
    }
    fill(found, stored)
    meta.MediaStorageSOPInstanceUID = UID(str(found.SOPInstanceUID))
    return found


def pixel_elements(pixels: NDArray[Any]) -> Mapping[str, Any]:
    bits = pixels.dtype.itemsize * 8
    return {
        "SamplesPerPixel": 1,
        "PhotometricInterpretation": "MONOCHROME2",
        "BitsAllocated": bits,
        "BitsStored": bits,
        "HighBit": bits - 1,
        "PixelRepresentation": int(pixels.dtype.kind == "i"),
        "PixelData": pixels.tobytes(),
    }


def fill(found: Dataset, elements: Mapping[str, Any]) -> Dataset:
    """Set elements by keyword; None removes one."""
    for keyword, value in elements.items():
        if value is None:
            if keyword in found:
                delattr(found, keyword)
        else:
            setattr(found, keyword, value)
    return found


def digits(value: float) -> str:
    """A decimal string of at most 16 characters, as the standard allows."""
    text = f"{value:.10f}"[:16]
    return "0" if set(text) <= set("-0.") else text


def write_series(
    folder: Path,
    voxels: NDArray[Any],
    affine: NDArray[np.float64] = AXIAL,
    *,
    order: Sequence[int] | None = None,
    series: int = 1,
    **elements: Any,
) -> list[Path]:
    """Write voxels (i, j, k) as one file a slice; `order` says which slice each file has."""
    folder.mkdir(parents=True, exist_ok=True)
    paths: list[Path] = []
    for number, k in enumerate(range(voxels.shape[2]) if order is None else order):
        path = folder / f"{number:04d}.dcm"
        own = {"SOPInstanceUID": uid(1, series, k + 1), "SeriesInstanceUID": uid(1, series)}
        dataset = slice_dataset(
            np.ascontiguousarray(voxels[:, :, k].T), affine, k, **{**own, **elements}
        )
        dataset.save_as(path, enforce_file_format=True)
        paths.append(path)
    return paths


def ramp(shape: tuple[int, int, int] = (7, 5, 4)) -> NDArray[np.int16]:
    """Voxels of which each differs from every other."""
    return np.arange(np.prod(shape), dtype=np.int16).reshape(shape)
