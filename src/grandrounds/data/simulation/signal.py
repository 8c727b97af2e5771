"""A scanner measures a tissue by its relaxation times, with one of four sequences."""

from collections.abc import Mapping
from dataclasses import dataclass
from math import cos, exp, radians, sin
from typing import Literal, TypeAlias, assert_never

from grandrounds.core.errors import BadStudy

FIELDS = (1.5, 3.0)  # tesla
DECAY = 60.0  # ms; effective transverse decay where the sequence does not refocus


@dataclass(frozen=True)
class Properties:
    """A tissue's properties at one field strength: proton density, and relaxation times in ms."""

    density: float
    t1: float
    t2: float

    def scaled(self, density: float, t1: float, t2: float) -> "Properties":
        """Multiply each property by a factor."""
        return Properties(self.density * density, self.t1 * t1, self.t2 * t2)


@dataclass(frozen=True)
class Tissue:
    """A tissue's proton density, and its relaxation times in ms at each of `FIELDS`."""

    density: float
    t1: tuple[float, float]
    t2: tuple[float, float]

    def at(self, field: float) -> Properties:
        """Return the properties at a field strength in tesla, linear between the two."""
        low, high = FIELDS
        share = (field - low) / (high - low)
        t1, t2 = (start + share * (end - start) for start, end in (self.t1, self.t2))
        return Properties(self.density, t1, t2)


TISSUES: Mapping[str, Tissue] = {
    "csf": Tissue(1.00, (4200, 4300), (2000, 1800)),
    "grey": Tissue(0.82, (1100, 1450), (95, 85)),
    "white": Tissue(0.68, (650, 850), (75, 68)),
    "deep grey": Tissue(0.78, (880, 1200), (85, 70)),
    "fat": Tissue(0.62, (330, 400), (70, 60)),
    "muscle": Tissue(0.75, (950, 1300), (45, 38)),
    "marrow": Tissue(0.55, (350, 430), (60, 50)),
    "bone": Tissue(0.05, (500, 500), (15, 10)),
    "lesion": Tissue(0.86, (1050, 1350), (150, 135)),
}
SequenceKind: TypeAlias = Literal["spin-echo", "inversion-recovery", "mprage", "gradient-echo"]
SETTINGS: Mapping[SequenceKind, tuple[str, ...]] = {
    "spin-echo": ("tr", "te"),
    "inversion-recovery": ("tr", "te", "ti"),
    "mprage": ("tr", "te", "ti"),
    "gradient-echo": ("tr", "te", "flip"),
}


@dataclass(frozen=True)
class Sequence:
    """A pulse sequence: repetition, echo and inversion time in ms, flip angle in degrees.

    Raises `BadStudy` where a setting that the kind needs is missing, or one that it has no use for
    is given, or a setting is out of range.
    """

    kind: SequenceKind
    tr: float
    te: float
    ti: float | None = None
    flip: float | None = None

    def __post_init__(self) -> None:
        """Check the values, as types do not limit them."""
        settings = {"tr": self.tr, "te": self.te, "ti": self.ti, "flip": self.flip}
        for name, value in settings.items():
            if (value is not None) != (name in SETTINGS[self.kind]):
                raise self._refusal(f"has {'no ' if value is None else 'a '}{name}")
            if value is not None and not value > 0:
                raise self._refusal(f"has {name} = {value:g}, which is not above 0")
        if not self.te < self.tr:
            raise self._refusal(f"has te = {self.te:g}, which is not below tr = {self.tr:g}")
        if self.flip is not None and not self.flip < 180:
            raise self._refusal(f"has flip = {self.flip:g}, which is not below 180")

    def _refusal(self, problem: str) -> BadStudy:
        *others, last = SETTINGS[self.kind]
        return BadStudy(
            f"a sequence of kind '{self.kind}' {problem}; it takes {', '.join(others)} and {last}."
        )

    def signal(self, tissue: Properties) -> float:
        """Return the magnitude of a tissue's signal; it is 1 for density 1 at full signal."""
        recovery = exp(-self.tr / tissue.t1)
        inversion = 2 * exp(-(self.ti or 0) / tissue.t1)
        refocused, decayed = exp(-self.te / tissue.t2), exp(-self.te / DECAY)
        match self.kind:
            case "spin-echo":
                return tissue.density * (1 - recovery) * refocused
            case "inversion-recovery":
                return tissue.density * abs(1 - inversion + recovery) * refocused
            case "mprage":
                return tissue.density * abs(1 - inversion / (1 + recovery)) * decayed
            case "gradient-echo":
                angle = radians(self.flip or 0)
                return tissue.density * _ernst(angle, recovery) * decayed
            case _:
                assert_never(self.kind)


def _ernst(angle: float, recovery: float) -> float:
    return sin(angle) * (1 - recovery) / (1 - cos(angle) * recovery)
