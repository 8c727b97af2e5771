"""A hospital's archive as DICOM: simulated patients, named and dated, series by series."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.uid import UID, ExplicitVRLittleEndian, MRImageStorage

from grandrounds.data.elements import Elements
from grandrounds.data.simulation.simulate import Scanner, simulate_session

CONTRASTS = ("T1w", "T2w", "PDw", "FLAIR")
_ROOT = "1.2.826.0.1.3680043.8.498"
_SEQUENCES = {
    "spin-echo": ("SE", "SP"),
    "inversion-recovery": (["SE", "IR"], ["SP", "MP"]),
    "gradient-echo": ("GR", "SP"),
}


@dataclass(frozen=True)
class Visit:
    """A patient on a day; what stands in the header names them as a hospital's does."""

    patient: str = "PID-77001"
    name: str = "Quixote^Dulcinea"
    birth: str = "19470312"
    day: str = "20190607"
    number: int = 1  # makes the UIDs of a visit its own
    age: str = "072Y"
    sex: str = "F"
    more: Mapping[str, object] = field(default_factory=dict)

    @property
    def study(self) -> str:
        return f"{_ROOT}.{self.number}"

    def series(self, contrast: str) -> str:
        return f"{self.study}.{CONTRASTS.index(contrast) + 1}"

    @property
    def secrets(self) -> tuple[str, ...]:
        """What must be found in nothing that is derived."""
        own = (self.patient, *self.name.split("^"), self.birth, self.day, self.study)
        return (*own, "Rocinante", "ACC-99313", "Sancho", "HOSPITAL-OF-TOBOSO", "windmill")


@cache
def pictures(patient: str, size: int, slices: int) -> Mapping[str, NDArray[np.uint16]]:
    """Slices of each contrast of a simulated patient, from the feet up."""
    elements = Elements(contrasts=CONTRASTS, size=(size, size), spacing=(192 / size, 192 / size))
    found = simulate_session(5, "hospital", patient, Scanner(), elements, slices=slices)
    whole = (found.images * 1000).round().astype(np.uint16)
    return {name: whole[:, index] for index, name in enumerate(CONTRASTS)}


def dicom_files(
    visit: Visit, contrasts: Sequence[str] = CONTRASTS, *, size: int = 32, slices: int = 6
) -> Iterator[tuple[str, FileDataset]]:
    """Yield the files of a visit, each with a name of its own."""
    voxels = pictures(visit.patient, size, slices)
    for contrast in contrasts:
        for number, picture in enumerate(voxels[contrast]):
            yield f"{contrast}-{number:03d}", dicom_file(visit, contrast, number, picture)


def dicom_file(
    visit: Visit, contrast: str, number: int, picture: NDArray[np.uint16]
) -> FileDataset:
    """Make one slice as a scanner would."""
    uid = UID(f"{visit.series(contrast)}.{number + 1}")
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = MRImageStorage, uid
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    made = FileDataset("", {}, file_meta=meta, preamble=b"\0" * 128)
    made.SOPClassUID, made.SOPInstanceUID = MRImageStorage, uid
    _name(made, visit, contrast)
    _acquire(made, contrast)
    rows, columns = picture.shape
    spacing = 192 / rows
    made.InstanceNumber = number + 1
    made.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
    made.ImagePositionPatient = [-96, -96, round(-24 + 48 * number / 5, 3)]
    made.PixelSpacing, made.SliceThickness = [spacing, spacing], 9.6
    made.Rows, made.Columns = rows, columns
    made.SamplesPerPixel, made.PhotometricInterpretation = 1, "MONOCHROME2"
    made.BitsAllocated, made.BitsStored, made.HighBit, made.PixelRepresentation = 16, 16, 15, 0
    made.PixelData = picture.tobytes()
    for keyword, value in visit.more.items():
        setattr(made, keyword, value)
    return made


def _name(made: Dataset, visit: Visit, contrast: str) -> None:
    made.PatientName, made.PatientID = visit.name, visit.patient
    made.PatientBirthDate, made.PatientAge, made.PatientSex = visit.birth, visit.age, visit.sex
    made.StudyInstanceUID, made.SeriesInstanceUID = visit.study, visit.series(contrast)
    made.FrameOfReferenceUID = f"{visit.study}.99"
    made.StudyDate = made.SeriesDate = made.AcquisitionDate = visit.day
    made.StudyTime = made.SeriesTime = "101500"
    made.AccessionNumber, made.StudyID = "ACC-99313", "4"
    made.ReferringPhysicianName = "Sancho^Panza"
    made.InstitutionName = "HOSPITAL-OF-TOBOSO"
    made.StudyDescription = "MR head, after a windmill"
    made.SeriesDescription = f"axial {CONTRASTS.index(contrast)} Rocinante"
    made.BodyPartExamined, made.SeriesNumber = "BRAIN", CONTRASTS.index(contrast) + 1
    made.private_block(0x0051, "SIMULATED", create=True).add_new(1, "LO", "Rocinante")


def _acquire(made: Dataset, contrast: str) -> None:
    sequence = Scanner().protocol[contrast]
    made.Modality, made.Manufacturer = "MR", "Simulated"
    made.ImageType = ["ORIGINAL", "PRIMARY", "M"]
    made.ScanningSequence, made.SequenceVariant = _SEQUENCES[sequence.kind]
    made.MRAcquisitionType, made.MagneticFieldStrength = "2D", 1.5
    made.RepetitionTime, made.EchoTime, made.FlipAngle = sequence.tr, sequence.te, 90
    if sequence.ti:
        made.InversionTime = sequence.ti


def save_visit(folder: Path, visit: Visit, contrasts: Sequence[str] = CONTRASTS) -> list[Path]:
    """Write the files of a visit into a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    paths: list[Path] = []
    for name, made in dicom_files(visit, contrasts):
        paths.append(folder / f"{visit.number}-{name}")
        made.save_as(paths[-1], enforce_file_format=True)
    return paths


def hospital(patients: int = 3) -> tuple[Visit, ...]:
    """Patients of a hospital, the first with two visits."""
    again = Visit(day="20210115", number=50, age="073Y")
    others = [
        Visit(
            f"PID-8{n:04d}", f"Panza^Number{n}", f"195{n}0401", f"2020060{n}", 100 + n, "065Y", "M"
        )
        for n in range(1, patients)
    ]
    return (Visit(), again, *others)
