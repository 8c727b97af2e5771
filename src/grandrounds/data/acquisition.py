"""How a volume was acquired is known by its physics, from the BIDS sidecar that lies beside it.

The file has BIDS' names and units (times in seconds); here times are milliseconds, as on a scanner.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from math import inf, isfinite
from pathlib import Path
from typing import Any, Literal, LiteralString, TypeAlias, cast, get_args

from grandrounds.core.errors import BadImage
from grandrounds.core.sentence import Reason, Sentence, phrase

SequenceFamily: TypeAlias = Literal[
    "spin-echo", "inversion-recovery", "mprage", "gradient-echo", "echo-planar"
]
FAMILIES: tuple[SequenceFamily, ...] = get_args(SequenceFamily)
ENDINGS = (".nii.gz", ".nii")
LARGEST_SIDECAR = 1 << 20  # bytes of a sidecar; longer ones hold more than an acquisition


@dataclass(frozen=True)
class Quantity:
    """A setting of a scanner: its BIDS name, what one of BIDS' units is here, and its range.

    `doubt` names a value that lies outside.
    """

    bids: str
    factor: float
    low: float
    high: float
    doubt: LiteralString


QUANTITIES: Mapping[str, Quantity] = {
    "repetition_time": Quantity(
        "RepetitionTime", 1000, 1, 60_000, "a repetition time of {value} ms"
    ),
    "echo_time": Quantity("EchoTime", 1000, 0.01, 2000, "an echo time of {value} ms"),
    "inversion_time": Quantity("InversionTime", 1000, 1, 20_000, "an inversion time of {value} ms"),
    "flip_angle": Quantity("FlipAngle", 1, 0.1, 360, "a flip angle of {value} degrees"),
    "field_strength": Quantity(
        "MagneticFieldStrength", 1, 0.01, 12, "a field strength of {value} T"
    ),
}
GAUSS = 10_000  # in a tesla; some systems write the field in gauss


@dataclass(frozen=True)
class Acquisition:
    """A volume's sequence: times in ms, angle in degrees, field in tesla; None is unknown.

    `dimensions` is 2 where slices were excited one by one, 3 where the whole slab was;
    `contrast_agent` tells whether one was given.
    """

    family: SequenceFamily | None = None
    repetition_time: float | None = None
    echo_time: float | None = None
    inversion_time: float | None = None
    flip_angle: float | None = None
    field_strength: float | None = None
    dimensions: Literal[2, 3] | None = None
    contrast_agent: bool | None = None

    def checked(self) -> tuple["Acquisition", tuple[Sentence, ...]]:
        """Return what is credible of it, and a sentence on each value that is not, now unknown."""
        wrong = {
            name: value
            for name in QUANTITIES
            if (value := getattr(self, name)) is not None and not _credible(name, value)
        }
        sentences = tuple(_doubt(name, value) for name, value in wrong.items())
        return replace(self, **dict.fromkeys(wrong)), sentences

    def to_sidecar(self) -> Mapping[str, object]:
        """Return what is known, by BIDS' names and units."""
        known = {
            quantity.bids: getattr(self, name) / quantity.factor
            for name, quantity in QUANTITIES.items()
            if getattr(self, name) is not None
        }
        more = {
            "SequenceFamily": self.family,
            "MRAcquisitionType": f"{self.dimensions}D" if self.dimensions else None,
            "ContrastAgent": self.contrast_agent,
        }
        return known | {name: value for name, value in more.items() if value is not None}


@dataclass(frozen=True)
class ScanProtocol:
    """How a volume came about: its sequence, and its voxels before preparation.

    `thickness` is the distance between slices and `pixel` the side of a pixel in the plane (the
    root of its area), in mm; None is unknown.
    """

    acquisition: Acquisition = field(default_factory=Acquisition)
    thickness: float | None = None
    pixel: float | None = None


def sidecar_of(volume: Path) -> Path:
    """Return where the sidecar of a NIfTI volume lies."""
    ending = next((e for e in ENDINGS if volume.name.endswith(e)), "")
    return volume.with_name(volume.name.removesuffix(ending) + ".json")


def read_acquisition(volume: Path) -> tuple[Acquisition, tuple[Sentence, ...]]:
    """Read how a NIfTI volume was acquired; without a sidecar all is unknown.

    Returns with it a sentence on each value that is not credible and so taken as unknown. Raises
    `BadImage` where the sidecar is no JSON object.
    """
    path = sidecar_of(volume)
    if not path.exists():
        return Acquisition(), ()
    return from_sidecar(read_sidecar(path)).checked()


def read_sidecar(path: Path) -> Mapping[str, object]:
    """Read a sidecar whole. Raises `BadImage`."""
    try:
        with path.open("rb") as file:
            text = file.read(LARGEST_SIDECAR + 1)
        found = json.loads(text) if len(text) <= LARGEST_SIDECAR else None
    except OSError as error:
        raise BadImage(
            f"{path}: {error.strerror}; a sidecar must be readable.",
            safe=phrase("a sidecar cannot be read ({why})", why=Reason.of(error)),
        ) from None
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise BadImage(
            f"{path}: is no sidecar; it must be one JSON object, of at most {LARGEST_SIDECAR} "
            "bytes.",
            safe=phrase("a sidecar is no JSON object"),
        )
    return cast(Mapping[str, object], found)


def from_sidecar(values: Mapping[str, object]) -> Acquisition:
    """Return what a sidecar says of the acquisition; a value of a wrong type is unknown."""
    known: dict[str, Any] = {
        name: value * quantity.factor
        for name, quantity in QUANTITIES.items()
        if (value := _number(values.get(quantity.bids))) is not None
    }
    kind, agent = values.get("MRAcquisitionType"), values.get("ContrastAgent")
    dimensions = {"2D": 2, "3D": 3}.get(kind) if isinstance(kind, str) else None
    return Acquisition(
        family=_family(values),
        dimensions=cast(Literal[2, 3] | None, dimensions),
        contrast_agent=agent if isinstance(agent, bool) else None,
        **known,
    )


def family_of(scanning: str, variant: str, inversion: bool) -> SequenceFamily | None:
    """Return the family by DICOM's words (0018,0020) and (0018,0021), joined as they stand.

    A magnetisation-prepared gradient echo is "mprage"; an inversion pulse before a spin echo makes
    it an inversion recovery.
    """
    words = set(f"{scanning}\\{variant}".upper().replace("_", "\\").split("\\"))
    if "EP" in words:
        return "echo-planar"
    if "GR" in words:
        return "mprage" if inversion and ("IR" in words or "MP" in words) else "gradient-echo"
    if "IR" in words or (inversion and "SE" in words):
        return "inversion-recovery"
    return "spin-echo" if "SE" in words else None


def _family(values: Mapping[str, object]) -> SequenceFamily | None:
    own = values.get("SequenceFamily")
    if own in FAMILIES:
        return own
    scanning, variant = (_joined(values.get(n)) for n in ("ScanningSequence", "SequenceVariant"))
    return family_of(scanning, variant, _number(values.get("InversionTime")) is not None)


def _joined(value: object) -> str:
    if isinstance(value, list):
        return "\\".join(str(each) for each in cast(list[object], value))
    return value if isinstance(value, str) else ""


def _number(value: object) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        return float(value)
    except OverflowError:  # an integer of hundreds of digits, which JSON may have
        return inf


def _credible(name: str, value: float) -> bool:
    quantity = QUANTITIES[name]
    return isfinite(value) and quantity.low <= value <= quantity.high


def _doubt(name: str, value: float) -> Sentence:
    tesla = value / GAUSS
    if name == "field_strength" and _credible(name, tesla):
        return phrase(
            "a field strength of {value} T cannot be (in gauss it would be {tesla} T): taken as "
            "unknown",
            value=value,
            tesla=tesla,
        )
    return phrase(QUANTITIES[name].doubt + " cannot be: taken as unknown", value=value)
