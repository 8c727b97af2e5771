"""What a DICOM file says of itself, without its pixels: plain values that JSON can carry.

They are made in the process that parses the file, and rebuilt, type by type, in the one that asked.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, LiteralString, TypeAlias

from grandrounds.core.sentence import Reason, Sentence, phrase
from grandrounds.data.acquisition import Acquisition, family_of

Trouble: TypeAlias = Literal[
    "not DICOM", "not an image", "damaged", "beyond limits", "unreadable", "unsupported"
]


@dataclass(frozen=True)
class PatientIdentity:
    """Whose file it is, as the header has it; it stays in the house."""

    id: str = ""
    issuer: str = ""
    name: str = ""
    birth_date: str = ""


@dataclass(frozen=True)
class ScannerSettings:
    """How the scanner was set, as the header has it: times in ms, angle in degrees, field in tesla.

    `sequence` and `variant` are DICOM's words (0018,0020) and (0018,0021), joined by a backslash;
    of an enhanced file they are put together from its own words.
    """

    sequence: str = ""
    variant: str = ""
    options: str = ""
    name: str = ""
    dimensions: str = ""
    repetition_time: float | None = None
    inversion_time: float | None = None
    flip_angle: float | None = None
    field_strength: float | None = None
    echo_train: float | None = None
    contrast_agent: bool | None = None

    def to_acquisition(self, echo_time: float | None) -> Acquisition:
        """Return the physics of it; `echo_time` in ms is a frame's own."""
        inverted = self.inversion_time is not None and self.inversion_time > 0
        dimensions: Literal[2, 3] | None = (
            3 if self.dimensions == "3D" else 2 if self.dimensions == "2D" else None
        )
        return Acquisition(
            family=family_of(self.sequence, self.variant, inverted),
            repetition_time=_above_zero(self.repetition_time),
            echo_time=_above_zero(echo_time),
            inversion_time=_above_zero(self.inversion_time),
            flip_angle=_above_zero(self.flip_angle),
            field_strength=_above_zero(self.field_strength),
            dimensions=dimensions,
            contrast_agent=self.contrast_agent,
        )


@dataclass(frozen=True)
class Frame:
    """One picture of a file, and where it lies (patient's left, back and head are positive; mm).

    `number` counts a file's frames, or a mosaic's tiles, from 0. `orientation` has the direction of
    growing column, then of growing row; `spacing` is between rows, then between columns.
    """

    number: int
    position: tuple[float, ...] | None = None
    orientation: tuple[float, ...] | None = None
    spacing: tuple[float, ...] | None = None
    thickness: float | None = None
    slope: float = 1.0
    intercept: float = 0.0
    image_type: tuple[str, ...] = ()
    echo_time: float | None = None
    b_value: float | None = None
    component: str = ""
    stack: str = ""
    time: int | None = None


@dataclass(frozen=True)
class StoredFile:
    """A file as it was when its header was read: its size and when it was changed (ns).

    `pixels` is where its pixels begin, if they lie there as they do in memory; else 0.
    """

    size: int = 0
    modified: int = 0
    pixels: int = 0


@dataclass(frozen=True)
class Instance:
    """One DICOM image file (an SOP instance), without its pixels.

    `tiles` is the number of slices in a mosaic, 0 for any other picture; `padding` is the range of
    stored values that mean "nothing here". `present` has the keywords of all elements that hold a
    value, nested ones too, for a check of de-identification; `private` counts private ones.
    """

    path: Path
    sop_uid: str
    series_uid: str
    study_uid: str
    patient: PatientIdentity
    sop_class: str = ""
    modality: str = ""
    transfer_syntax: str = ""
    rows: int = 0
    columns: int = 0
    samples: int = 1
    bits_allocated: int = 16
    bits_stored: int = 16
    signed: bool = False
    stored: StoredFile = StoredFile()
    photometric: str = ""
    padding: tuple[float, ...] = ()
    tiles: int = 0
    image_type: tuple[str, ...] = ()
    series_number: int | None = None
    acquisition_number: int | None = None
    instance_number: int | None = None
    study_date: str = ""
    series_time: str = ""
    accession: str = ""
    description: str = ""
    protocol: str = ""
    body_part: str = ""
    manufacturer: str = ""
    model: str = ""
    sex: str = ""
    age: float | None = None
    burned_in: bool | None = None
    deidentified: bool | None = None
    settings: ScannerSettings = ScannerSettings()
    frames: tuple[Frame, ...] = ()
    present: tuple[str, ...] = ()
    private: int = 0

    def same_as(self, other: "Instance") -> bool:
        """Tell whether two files are copies of one picture, wherever and however stored."""
        stored = {
            name: getattr(other, name)
            for name in ("path", "stored", "transfer_syntax", "present", "private")
        }
        return replace(self, **stored) == other


@dataclass(frozen=True)
class RefusedFile:
    """A file that is no picture that can be used, and why; `reason` names no file and no person.

    What is "not DICOM" or "not an image" (a report, a DICOMDIR) need worry nobody.
    """

    path: Path
    trouble: Trouble
    reason: Sentence


class Unusable(Exception):  # noqa: N818 - it is an answer
    """A file cannot be used: the code of its trouble, and numbers."""

    def __init__(self, code: str, **numbers: float) -> None:
        super().__init__(code)
        self.code, self.numbers = code, numbers


TROUBLES: Mapping[str, tuple[Trouble, LiteralString]] = {
    "not-dicom": ("not DICOM", "is no DICOM file"),
    "directory": ("not an image", "is a DICOMDIR, a list of other files"),
    "not-image": ("not an image", "is a DICOM file without a picture (a report or a plan)"),
    "no-pixels": ("damaged", "has no pixel data"),
    "no-size": ("damaged", "has no rows, columns or frames"),
    "no-uid": ("damaged", "lacks the UID of its series or its own"),
    "changed": ("unreadable", "has changed since its header was read"),
    "short": ("damaged", "has {found} bytes of pixel data where its header needs {needed}"),
    "syntax": ("unsupported", "has an unknown transfer syntax, so its pixels cannot be decoded"),
    "decoder": ("unsupported", "is compressed, and no decoder of its transfer syntax is installed"),
    "lossless-jpeg": (
        "unsupported",
        "is compressed as lossless JPEG, whose decoder is an extra of its own: dicom-jpeg",
    ),
    "pixels": ("damaged", "has pixel data that cannot be decoded"),
    "header": ("damaged", "has a header that cannot be parsed"),
    "deep": ("damaged", "has sequences nested too deeply to parse"),
    "mosaic": ("unsupported", "is a mosaic whose number of slices or orientation is not told"),
    "frames": ("beyond limits", "has {found} frames; at most {most} are read"),
    "large": ("beyond limits", "has {found} bytes; at most {most} are read"),
    "voxels": ("beyond limits", "would have {found} voxels; at most {most} are read"),
    "memory": ("beyond limits", "needs more memory than the {most} MiB that a parser may have"),
    "time": ("beyond limits", "keeps its parser busy for longer than {most} seconds"),
    "killed": ("beyond limits", "ended its parser by signal {signal}"),
    "ended": ("damaged", "ended its parser without an answer"),
    "answer": ("damaged", "made its parser give an answer that is none"),
    "not-file": ("unreadable", "is no regular file (a pipe, a device or a link)"),
    "closed": ("unreadable", "cannot be read ({why})"),
}


def trouble_with(path: Path, code: str, **numbers: float | Reason) -> RefusedFile:
    """Return a refusal by its code; an unknown code, or wrong numbers, is itself a wrong answer."""
    kind, words = TROUBLES.get(code, TROUBLES["answer"])
    try:
        words.format(**numbers)
    except (KeyError, IndexError, ValueError):
        kind, words = TROUBLES["answer"]
    return RefusedFile(path, kind, phrase(words, **numbers))


def _above_zero(value: float | None) -> float | None:
    return value if value is not None and value > 0 else None
