"""A DICOM header becomes a plain description; it runs in a process with limits, never elsewhere.

Nothing of a header is trusted but what `Instance` has a field for.
"""

import os
from collections.abc import Mapping
from functools import cache
from typing import BinaryIO

import pydicom
from pydicom.dataset import Dataset, FileDataset
from pydicom.errors import InvalidDicomError
from pydicom.pixels.decoders.base import get_decoder
from pydicom.tag import BaseTag
from pydicom.uid import (
    UID,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEGLossless,
    JPEGLosslessSV1,
)

from grandrounds.data.dicom import mosaic
from grandrounds.data.dicom.elements import (
    filled,
    first_item,
    first_number,
    items,
    numbers,
    text,
    whole_number,
    words,
)
from grandrounds.data.dicom.instance import Unusable

MOST_FRAMES = 20_000
_MOST_PRESENT = 5000
_PIXEL_DATA = b"\xe0\x7f\x10\x00"
_EMPTY = Dataset()
_FRAME_ITEMS = ("SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence")
_SIEMENS_B = BaseTag(0x0019100C)
_DIRECTORY = "1.2.840.10008.1.3.10"
_NO_AGENT = ("", "no", "none", "n", "off", "without", "no contrast")
_GROUPS = (b"\x02\x00", b"\x08\x00", b"\x00\x08")  # how a file without a preamble may begin


def parse_dataset(file: BinaryIO, *, pixels: bool) -> FileDataset:
    """Parse an open file, its pixel data only on request. Raises `Unusable`."""
    start = file.read(132)
    file.seek(0)
    bare = start[128:132] != b"DICM"
    if bare and not start.startswith(_GROUPS):
        raise Unusable("not-dicom")
    try:
        found = pydicom.dcmread(  # pyright: ignore[reportUnknownMemberType]
            file, stop_before_pixels=not pixels, force=bare
        )
    except InvalidDicomError:
        raise Unusable("not-dicom") from None
    if bare and "SOPClassUID" not in found:
        raise Unusable("not-dicom")
    return found


def describe(file: BinaryIO) -> Mapping[str, object]:
    """Return what `Instance` is made of; raises `Unusable`."""
    facts = os.fstat(file.fileno())
    found = parse_dataset(file, pixels=False)
    _check_kind(found)
    syntax = text(found.file_meta, "TransferSyntaxUID") if hasattr(found, "file_meta") else ""
    syntax = syntax or _guessed_syntax(found)
    _check_pixels(found, syntax, facts.st_size - file.tell())
    where = _native_pixels(found, file, syntax)
    frames, tiles = _frames(found)
    return {
        **_identity(found),
        **_picture(found),
        "stored": {"size": facts.st_size, "modified": facts.st_mtime_ns, "pixels": where},
        "transfer_syntax": syntax,
        "tiles": tiles,
        "settings": _settings(found),
        "frames": frames,
        **_present(found),
    }


def _check_kind(found: Dataset) -> None:
    sop_class = text(found, "SOPClassUID") or text(
        getattr(found, "file_meta", Dataset()), "MediaStorageSOPClassUID"
    )
    if sop_class == _DIRECTORY or "DirectoryRecordSequence" in found:
        raise Unusable("directory")
    if "Rows" not in found and "Columns" not in found:
        raise Unusable("not-image")
    if not (text(found, "SeriesInstanceUID") and text(found, "SOPInstanceUID")):
        raise Unusable("no-uid")


def _guessed_syntax(found: FileDataset) -> str:
    implicit, little = found.original_encoding
    if implicit:
        return "1.2.840.10008.1.2"
    return "1.2.840.10008.1.2.1" if little else "1.2.840.10008.1.2.2"


def _native_pixels(found: FileDataset, file: BinaryIO, syntax: str) -> int:
    """Return where pixels begin that lie in the file as they are in memory; 0 for any others."""
    if syntax not in (ImplicitVRLittleEndian, ExplicitVRLittleEndian):
        return 0
    if (
        first_number(found, "BitsAllocated") not in (8, 16, 32)
        or "PixelRepresentation" not in found
    ):
        return 0
    start = file.tell()
    length = 8 if found.original_encoding[0] else 12  # of tag, type and length
    return start + length if file.read(4) == _PIXEL_DATA else 0


def _check_pixels(found: FileDataset, syntax: str, left: int) -> None:
    """Hold the header's promise of pixels against how many bytes follow it in the file."""
    promised = _promised(found)
    if syntax == DeflatedExplicitVRLittleEndian:  # what was read was no part of the file
        return
    if left < 8:
        raise Unusable("no-pixels")
    if missing := _missing_decoder(syntax):
        raise Unusable(missing)
    needed = int(promised * (first_number(found, "BitsAllocated") or 16)) // 8
    if not UID(syntax).is_compressed and left < needed:
        raise Unusable("short", found=left, needed=needed)


@cache
def _missing_decoder(syntax: str) -> str:
    """Return the code of what keeps a transfer syntax from being decoded; empty if nothing."""
    try:
        decoder = get_decoder(UID(syntax))
    except (NotImplementedError, ValueError):
        return "syntax"
    if not UID(syntax).is_compressed or decoder.is_available:
        return ""
    return "lossless-jpeg" if syntax in (JPEGLossless, JPEGLosslessSV1) else "decoder"


def _promised(found: Dataset) -> float:
    """Return how many values a file's pixels have."""
    rows, columns = first_number(found, "Rows") or 0, first_number(found, "Columns") or 0
    count = first_number(found, "NumberOfFrames")
    frames = 1 if count is None else int(count)
    if not (0 < rows <= 65535 and 0 < columns <= 65535) or frames < 1:
        raise Unusable("no-size")
    if frames > MOST_FRAMES:
        raise Unusable("frames", found=frames, most=MOST_FRAMES)
    return rows * columns * frames * (first_number(found, "SamplesPerPixel") or 1)


def _identity(found: Dataset) -> Mapping[str, object]:
    yes_no = {"YES": True, "NO": False}
    return {
        "sop_uid": text(found, "SOPInstanceUID"),
        "series_uid": text(found, "SeriesInstanceUID"),
        "study_uid": text(found, "StudyInstanceUID"),
        "patient": {
            "id": text(found, "PatientID"),
            "issuer": text(found, "IssuerOfPatientID"),
            "name": text(found, "PatientName"),
            "birth_date": text(found, "PatientBirthDate"),
        },
        "study_date": text(found, "StudyDate"),
        "series_time": text(found, "SeriesTime"),
        "accession": text(found, "AccessionNumber"),
        "description": text(found, "SeriesDescription"),
        "protocol": text(found, "ProtocolName"),
        "sex": text(found, "PatientSex"),
        "age": _age(text(found, "PatientAge")),
        "burned_in": yes_no.get(text(found, "BurnedInAnnotation").upper()),
        "deidentified": yes_no.get(text(found, "PatientIdentityRemoved").upper()),
    }


def _age(age: str) -> float | None:
    per_year = {"D": 365.25, "W": 52.18, "M": 12.0, "Y": 1.0}.get(age[3:])
    return int(age[:3]) / per_year if per_year and age[:3].isdecimal() else None


def _picture(found: Dataset) -> Mapping[str, object]:
    return {
        "sop_class": text(found, "SOPClassUID"),
        "modality": text(found, "Modality"),
        "rows": whole_number(found, "Rows"),
        "columns": whole_number(found, "Columns"),
        "samples": whole_number(found, "SamplesPerPixel") or 1,
        "bits_allocated": whole_number(found, "BitsAllocated") or 16,
        "bits_stored": whole_number(found, "BitsStored") or 16,
        "signed": first_number(found, "PixelRepresentation") == 1,
        "photometric": text(found, "PhotometricInterpretation"),
        "padding": _padding(found),
        "image_type": words(found, "ImageType"),
        "series_number": whole_number(found, "SeriesNumber"),
        "acquisition_number": whole_number(found, "AcquisitionNumber"),
        "instance_number": whole_number(found, "InstanceNumber"),
        "body_part": text(found, "BodyPartExamined"),
        "manufacturer": text(found, "Manufacturer"),
        "model": text(found, "ManufacturerModelName"),
    }


def _padding(found: Dataset) -> tuple[float, ...]:
    ends = (first_number(found, "PixelPaddingValue"), first_number(found, "PixelPaddingRangeLimit"))
    there = [each for each in ends if each is not None]
    return (min(there), max(there)) if ends[0] is not None else ()


def _settings(found: Dataset) -> Mapping[str, object]:
    """Return the scanner's settings, of a classic file or from an enhanced one's groups."""
    groups = {
        name: _grouped(found, f"MR{name}Sequence")
        for name in ("TimingAndRelatedParameters", "Modifier", "Echo")
    }
    timing, modifier = groups["TimingAndRelatedParameters"], groups["Modifier"]
    inversion = first_number(found, "InversionTime")
    if inversion is None:
        inversion = next(iter(numbers(modifier, "InversionTimes")), None)
    return {
        "sequence": text(found, "ScanningSequence") or _enhanced_sequence(found, modifier),
        "variant": text(found, "SequenceVariant") or _enhanced_variant(modifier),
        "options": text(found, "ScanOptions"),
        "name": text(found, "SequenceName") or text(found, "PulseSequenceName"),
        "dimensions": text(found, "MRAcquisitionType"),
        "repetition_time": _either(found, timing, "RepetitionTime"),
        "inversion_time": inversion,
        "flip_angle": _either(found, timing, "FlipAngle"),
        "field_strength": first_number(found, "MagneticFieldStrength"),
        "echo_train": _either(found, timing, "EchoTrainLength"),
        "contrast_agent": _agent(found),
    }


def _either(found: Dataset, group: Dataset, keyword: str) -> float | None:
    own = first_number(found, keyword)
    return first_number(group, keyword) if own is None else own


def _grouped(found: Dataset, keyword: str) -> Dataset:
    """Return a functional group's item: the shared one, or the first frame's."""
    for name in _FRAME_ITEMS:
        item = first_item(first_item(found, name), keyword)
        if len(item):
            return item
    return _EMPTY


def _enhanced_sequence(found: Dataset, modifier: Dataset) -> str:
    echo = {"SPIN": ["SE"], "GRADIENT": ["GR"], "BOTH": ["SE", "GR"]}
    parts = list(echo.get(text(found, "EchoPulseSequence").upper(), []))
    if text(found, "EchoPlanarPulseSequence").upper() == "YES":
        parts.append("EP")
    if text(modifier, "InversionRecovery").upper() == "YES":
        parts.append("IR")
    return "\\".join(parts)


def _enhanced_variant(modifier: Dataset) -> str:
    spoiled = text(modifier, "Spoiling").upper()
    return "SP" if spoiled not in ("", "NONE") else ""


def _agent(found: Dataset) -> bool | None:
    """Tell whether a contrast agent was given; a header that is silent leaves it unknown."""
    if items(found, "ContrastBolusAgentSequence"):
        return True
    if "ContrastBolusAgent" not in found or not text(found, "ContrastBolusAgent"):
        return None
    return text(found, "ContrastBolusAgent").lower() not in _NO_AGENT


def _frames(found: Dataset) -> tuple[list[Mapping[str, object]], int]:
    """Return each frame's own facts, and the number of a mosaic's tiles."""
    if "PerFrameFunctionalGroupsSequence" in found:
        shared = first_item(found, "SharedFunctionalGroupsSequence")
        own = items(found, "PerFrameFunctionalGroupsSequence")[:MOST_FRAMES]
        return [_enhanced(found, shared, item, k) for k, item in enumerate(own)], 0
    frame = _classic(found)
    if "MOSAIC" in words(found, "ImageType"):
        tiles = mosaic.tiles(found, frame)
        if tiles is None:
            raise Unusable("mosaic")
        return list(tiles), len(tiles)
    count = whole_number(found, "NumberOfFrames") or 1
    if count == 1:
        return [frame], 0
    return [{**frame, "number": k, "position": None} for k in range(count)], 0


def _classic(found: Dataset) -> dict[str, object]:
    return {
        "number": 0,
        "position": numbers(found, "ImagePositionPatient") or None,
        "orientation": numbers(found, "ImageOrientationPatient") or None,
        "spacing": numbers(found, "PixelSpacing") or None,
        "thickness": first_number(found, "SliceThickness"),
        "slope": _slope(found),
        "intercept": first_number(found, "RescaleIntercept") or 0.0,
        "image_type": words(found, "ImageType"),
        "echo_time": first_number(found, "EchoTime"),
        "b_value": _b_value(found),
        "component": text(found, "ComplexImageComponent").upper(),
        "stack": "",
        "time": whole_number(found, "TemporalPositionIdentifier"),
    }


def _slope(found: Dataset) -> float:
    slope = first_number(found, "RescaleSlope")
    return 1.0 if slope is None else slope


def _b_value(found: Dataset) -> float | None:
    standard = first_number(found, "DiffusionBValue")
    if standard is not None:
        return standard
    if "SIEMENS" not in text(found, "Manufacturer").upper():
        return None
    return next(iter(numbers(found, _SIEMENS_B)), None)


def _enhanced(found: Dataset, shared: Dataset, own: Dataset, k: int) -> Mapping[str, object]:
    def group(name: str) -> Dataset:
        item = first_item(own, name)
        return item if len(item) else first_item(shared, name)

    plane, measures = group("PlaneOrientationSequence"), group("PixelMeasuresSequence")
    scaling, content = group("PixelValueTransformationSequence"), group("FrameContentSequence")
    kind = group("MRImageFrameTypeSequence")
    return {
        "number": k,
        "position": numbers(group("PlanePositionSequence"), "ImagePositionPatient") or None,
        "orientation": numbers(plane, "ImageOrientationPatient") or None,
        "spacing": numbers(measures, "PixelSpacing") or None,
        "thickness": first_number(measures, "SliceThickness"),
        "slope": _slope(scaling),
        "intercept": first_number(scaling, "RescaleIntercept") or 0.0,
        "image_type": words(kind, "FrameType") or words(found, "ImageType"),
        "echo_time": first_number(group("MREchoSequence"), "EffectiveEchoTime"),
        "b_value": first_number(group("MRDiffusionSequence"), "DiffusionBValue"),
        "component": (
            text(kind, "ComplexImageComponent") or text(found, "ComplexImageComponent")
        ).upper(),
        "stack": text(content, "StackID"),
        "time": whole_number(content, "TemporalPositionIndex"),
    }


def _present(found: Dataset) -> Mapping[str, object]:
    keywords: dict[str, None] = {}
    private = 0
    for count, (keyword, is_private) in enumerate(filled(found, _FRAME_ITEMS)):
        if count >= _MOST_PRESENT:
            break
        private += is_private
        if keyword:
            keywords[keyword] = None
    return {"present": tuple(keywords), "private": private}
