"""A volume derived from a DICOM series is written as a series of its own in the same study.

Each picture is of the MR Image Storage class (PS3.3, A.4), with the patient and the study of the
source, new UIDs, and references to the pictures that it was derived from. It says that it is
synthetic: in its image type, its description, its derivation and (0008,001C) Synthetic Data.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from numpy.typing import NDArray
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.sequence import Sequence as Items
from pydicom.uid import UID, ExplicitVRLittleEndian, MRImageStorage, generate_uid

from grandrounds import __version__
from grandrounds.core.errors import BadImage
from grandrounds.data.dicom.geometry import PlacedFrame
from grandrounds.data.dicom.instance import Instance
from grandrounds.data.dicom.series import Series
from grandrounds.data.measured import SYNTHETIC_TEXT, SYNTHETIC_WORD

# Of the modules Patient, General Study, Patient Study and Frame of Reference; texts stay as coded.
CARRIED = (
    *("SpecificCharacterSet", "PatientName", "PatientID", "IssuerOfPatientID", "PatientBirthDate"),
    *("PatientSex", "PatientAge", "PatientSize", "PatientWeight", "PatientIdentityRemoved"),
    *("DeidentificationMethod", "StudyInstanceUID", "StudyDate", "StudyTime", "StudyID"),
    *("AccessionNumber", "ReferringPhysicianName", "StudyDescription", "FrameOfReferenceUID"),
    *("PositionReferenceIndicator", "PatientPosition", "BodyPartExamined"),
)
# Without a value where the source has none: these must stand in every picture.
_EMPTY = (
    *("PatientName", "PatientID", "PatientBirthDate", "PatientSex", "StudyDate", "StudyTime"),
    *("StudyID", "AccessionNumber", "ReferringPhysicianName", "PositionReferenceIndicator"),
)
STORED_ONE = 4095  # the stored value that stands for 1
_BITS = 12
_LONGEST_NAME, _LONGEST_TEXT = 64, 1024  # characters of LO and ST
_LARGEST_NUMBER = 2**31 - 1
_AFTER_SOURCE = 1000  # is added to the source's series number


@dataclass(frozen=True)
class SyntheticOrigin:
    """What was made of what, and sentences on how."""

    source: str
    target: str
    provenance: tuple[str, ...] = ()

    @property
    def series_description(self) -> str:
        return f"{self.target} from {self.source}: {SYNTHETIC_TEXT}"[:_LONGEST_NAME]

    @property
    def text(self) -> str:
        made = f"Synthetic {self.target}, predicted from a {self.source} by a neural network."
        use = f"Not for diagnosis. Stored values from 0 to {STORED_ONE} stand for 0 to 1."
        whole = " ".join((made, use, *self.provenance, f"grandrounds {__version__}."))
        return whole[:_LONGEST_TEXT]


def write_derived(
    voxels: NDArray[np.float32], source: Series, derivation: SyntheticOrigin, folder: Path
) -> None:
    """Write a volume (column, row, slice) in [0, 1], on the grid of its source, into a new folder.

    Raises `BadImage` where the source's pictures do not have this grid (a tilted gantry), or have
    changed since they were read.
    """
    if voxels.shape != source.grid.shape or source.grid.shear != (0.0, 0.0):
        raise BadImage(
            f"{source.first.path.parent}: its slices are shifted against each other (a tilted "
            "gantry), so a derived series has no grid of its own; write NIfTI instead."
        )
    study = _carried(source.first)
    series = _series(source, derivation)
    folder.mkdir()
    for number, picture in enumerate(source.pictures):
        made = Dataset()
        made.update(study)
        made.update(series)
        _add_plane(made, picture, number, source)
        _add_references(made, picture)
        _add_pixels(made, voxels[:, :, number].T)
        _save(made, folder / f"{number + 1:05d}.dcm")


def _carried(first: Instance) -> Dataset:
    """Read the patient and the study of a file whose header a process with limits has parsed."""
    wanted = [*CARRIED, "SOPInstanceUID"]
    found = pydicom.dcmread(  # pyright: ignore[reportUnknownMemberType]
        first.path, stop_before_pixels=True, force=True, specific_tags=wanted
    )
    if str(found.get("SOPInstanceUID", "")) != first.sop_uid:
        raise BadImage(f"{first.path}: has changed since it was read; try again.")
    study = Dataset()
    for keyword in CARRIED:
        if keyword in found:
            study[keyword] = found[keyword]
    for keyword in _EMPTY:
        if keyword not in study:
            setattr(study, keyword, "")
    if "FrameOfReferenceUID" not in study:
        study.FrameOfReferenceUID = generate_uid(None)
    return study


def _series(source: Series, derivation: SyntheticOrigin) -> Dataset:
    """Return what all pictures of the new series say alike."""
    now = datetime.now(UTC).astimezone()
    date, time = now.strftime("%Y%m%d"), now.strftime("%H%M%S")
    number = min((source.first.series_number or 0) + _AFTER_SOURCE, _LARGEST_NUMBER)
    facts: dict[str, Any] = {
        "SOPClassUID": MRImageStorage,
        "Modality": "MR",
        "SyntheticData": "YES",
        "ImageType": ["DERIVED", "SECONDARY", "OTHER", SYNTHETIC_WORD],
        "SeriesInstanceUID": generate_uid(None),
        "SeriesNumber": number,
        "SeriesDescription": derivation.series_description,
        "SeriesDate": date,
        "SeriesTime": time,
        "ContentDate": date,
        "ContentTime": time,
        "InstanceCreationDate": date,
        "InstanceCreationTime": time,
        "Manufacturer": "grandrounds",
        "ManufacturerModelName": "grandrounds",
        "SoftwareVersions": __version__,
        "DerivationDescription": derivation.text,
        "ContentQualification": "RESEARCH",
        "BurnedInAnnotation": "NO",
        "LossyImageCompression": "00",
        # No scanner made it: "research mode", and times without a value.
        "ScanningSequence": "RM",
        "SequenceVariant": "NONE",
        "ScanOptions": "",
        "MRAcquisitionType": "",
        "RepetitionTime": None,
        "EchoTime": None,
        "EchoTrainLength": None,
        "AcquisitionNumber": None,
        "Laterality": "",
    }
    series = Dataset()
    for keyword, value in facts.items():
        setattr(series, keyword, value)
    series.ReferencedSeriesSequence = Items([_referenced_series(source)])
    return series


def _referenced_series(source: Series) -> Dataset:
    item = Dataset()
    item.SeriesInstanceUID = source.first.series_uid
    item.ReferencedInstanceSequence = Items([_reference(each) for each in source.instances])
    return item


def _reference(instance: Instance, frame: int | None = None) -> Dataset:
    item = Dataset()
    item.ReferencedSOPClassUID = instance.sop_class
    item.ReferencedSOPInstanceUID = instance.sop_uid
    if frame is not None and len(instance.frames) > 1 and not instance.tiles:
        item.ReferencedFrameNumber = frame + 1
    return item


def _add_plane(made: Dataset, picture: PlacedFrame, number: int, source: Series) -> None:
    """Give a picture the plane of its source, by the volume's own affine."""
    affine = np.diag([-1.0, -1.0, 1.0, 1.0]) @ source.grid.affine  # to DICOM's axes
    lengths = np.linalg.norm(affine[:3, :3], axis=0)
    directions = affine[:3, :3] / lengths
    made.SOPInstanceUID = generate_uid(None)
    made.InstanceNumber = number + 1
    made.ImagePositionPatient = _decimals(affine[:3, 2] * number + affine[:3, 3])
    made.ImageOrientationPatient = _decimals([*directions[:, 0], *directions[:, 1]])
    made.PixelSpacing = _decimals([lengths[1], lengths[0]])
    made.SliceThickness = _decimals([picture.frame.thickness or lengths[2]])[0]
    made.SpacingBetweenSlices = _decimals([lengths[2]])[0]


def _decimals(values: Sequence[float] | NDArray[np.float64]) -> list[str]:
    """Return numbers as DICOM's decimal strings, of at most 16 characters."""
    return [_decimal(float(value)) for value in values]


def _decimal(value: float) -> str:
    texts = (f"{value + 0.0:.{digits}g}" for digits in range(12, 5, -1))
    return next(text for text in texts if len(text) <= 16)


def _add_references(made: Dataset, picture: PlacedFrame) -> None:
    code = Dataset()
    code.CodeValue, code.CodingSchemeDesignator = "121322", "DCM"
    code.CodeMeaning = "Source image for image processing operation"
    start = _reference(picture.instance, picture.frame.number)
    start.PurposeOfReferenceCodeSequence = Items([code])
    made.SourceImageSequence = Items([start])
    made.ReferencedImageSequence = Items([_reference(picture.instance, picture.frame.number)])


def _add_pixels(made: Dataset, values: NDArray[np.float32]) -> None:
    stored = np.clip(np.rint(values * STORED_ONE), 0, STORED_ONE).astype("<u2")
    made.Rows, made.Columns = stored.shape
    made.SamplesPerPixel = 1
    made.PhotometricInterpretation = "MONOCHROME2"
    made.BitsAllocated, made.BitsStored, made.HighBit = 16, _BITS, _BITS - 1
    made.PixelRepresentation = 0
    made.RescaleIntercept, made.RescaleSlope, made.RescaleType = "0", "1", "US"
    made.WindowCenter, made.WindowWidth = str((STORED_ONE + 1) // 2), str(STORED_ONE + 1)
    made.PixelData = np.ascontiguousarray(stored).tobytes()


def _save(made: Dataset, path: Path) -> None:
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = UID(made.SOPClassUID)
    meta.MediaStorageSOPInstanceUID = UID(made.SOPInstanceUID)
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    made.file_meta = meta
    made.save_as(path, enforce_file_format=True)  # pyright: ignore[reportUnknownMemberType]
