"""The common data elements are what every site of a study must be able to deliver."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

DEFAULT_FLOOR = 5  # people: the fewest of whom a statistic may leave a site
FLOORS = (3, 100)  # with two, each knows the other; above a hundred hardly a site would answer
# What only a task that reads images and tables by the house's own rules can be held against.
STATED_OF_IMAGES = (
    *("field_strengths", "spacing_in_plane", "spacing_through", "orientation", "age", "labels"),
)
Plane: TypeAlias = Literal["axial", "coronal", "sagittal"]


@dataclass(frozen=True)
class Fractions:
    """How a site's patients are split; the three add up to 1.

    Another `salt` deals all patients anew, for a site whose few test patients lack a contrast.
    """

    train: float = 0.7
    validation: float = 0.1
    test: float = 0.2
    salt: str = ""


# Of a site that has no part in the training: no patient is kept back to train.
ALL_TESTED = Fractions(train=0, validation=0, test=1, salt="all tested")


@dataclass(frozen=True)
class Elements:
    """What the consortium agreed on; `size` (height, width) in pixels, `spacing` in mm.

    `variables` are numbers known of every patient, such as age or a finding, beside the images.
    `intensity` maps a contrast whose values have a unit, as CT has, to the window that becomes 0 to
    1, such as [0, 80] HU; every other contrast is scaled by its own brain.

    The rest is what sites' data are held against before anyone trains; None asks for nothing.
    `field_strengths` (tesla) are those of the scanners, `spacing_in_plane` (rows and columns) and
    `spacing_through` (slices) the lowest and highest in mm before preparation, `orientation` the
    plane of the slices, `age` the lowest and highest in years, of those whose age is known.
    `labels` maps a mask to the name and value of each structure in it, `minimum` the word
    "patients", a contrast, mask, variable or task to the fewest patients that a site should have.
    `floor` is the fewest people of whom a statistic leaves a site, `DEFAULT_FLOOR` where None.
    """

    contrasts: tuple[str, ...] = ()
    size: tuple[int, int] = (128, 128)
    spacing: tuple[float, float] = (1.5, 1.5)
    split: Fractions = field(default_factory=Fractions)
    variables: tuple[str, ...] = ()
    intensity: Mapping[str, tuple[float, float]] | None = None
    field_strengths: tuple[float, ...] | None = None
    spacing_in_plane: tuple[float, float] | None = None
    spacing_through: tuple[float, float] | None = None
    orientation: Plane | None = None
    age: tuple[float, float] | None = None
    labels: Mapping[str, Mapping[str, int]] | None = None
    minimum: Mapping[str, int] | None = None
    floor: int | None = None

    @property
    def least(self) -> int:
        """Return the fewest people of whom a statistic may leave a site."""
        return DEFAULT_FLOOR if self.floor is None else self.floor
