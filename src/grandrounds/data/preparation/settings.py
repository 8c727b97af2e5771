"""What a site wants done to its volumes before they are used; each step can be left out."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias

from grandrounds.core.errors import BadStudy

Interpolation: TypeAlias = Literal["linear", "b-spline"]
RegistrationKind: TypeAlias = Literal["rigid", "affine", "none"]
BrainMask: TypeAlias = Literal["own", "simple", "none"]
Normalisation: TypeAlias = Literal["none", "white-matter", "z-score"]
Spacing: TypeAlias = tuple[float, float, float]

PREFERRED_REFERENCES = ("T1w", "T2w", "FLAIR", "PDw")
SPACING_RANGE = (0.2, 20.0)  # mm between voxels that are asked for


@dataclass(frozen=True)
class Preparation:
    """The table `prepare` of a site file.

    `source` is the folder of the volumes to prepare; a relative path starts at the site file, and
    without one it is where `[archive]` puts its volumes.
    `reference` lists contrasts in order of preference: a session's others are registered onto the
    first that it has. `spacing` is in mm, one number or one for each of right, anterior and
    superior; without it the reference's grid stays. `drawn_on` is the contrast that the masks were
    drawn on, where their own grid does not tell. With `strip`, what lies outside of the brain
    becomes 0.
    """

    source: Path = Path()
    bias: bool = True
    registration: RegistrationKind = "rigid"
    reference: tuple[str, ...] = PREFERRED_REFERENCES
    spacing: float | Spacing | None = None
    interpolation: Interpolation = "linear"
    drawn_on: str | None = None
    brain: BrainMask = "own"
    strip: bool = False
    intensity: Normalisation = "none"

    def __post_init__(self) -> None:
        """Check what types do not. Raises `BadStudy`."""
        low, high = SPACING_RANGE
        for length in self.lengths or ():
            if not low <= length <= high:
                raise BadStudy(
                    f"prepare.spacing has {length:g} mm; it must be from {low:g} to {high:g} mm."
                )
        if not self.reference:
            raise BadStudy("prepare.reference is empty; it must name a contrast at least.")
        if self.strip and self.brain == "none":
            raise BadStudy(
                'prepare.strip needs a brain mask; choose brain = "own" or brain = "simple".'
            )

    @property
    def lengths(self) -> Spacing | None:
        """Return the spacing that is asked for, to the right, forward and up."""
        if isinstance(self.spacing, int | float):
            length = float(self.spacing)
            return length, length, length
        return self.spacing
