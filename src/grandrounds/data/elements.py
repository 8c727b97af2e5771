"""The common data elements are what every site of a study must be able to deliver."""

from collections.abc import Mapping
from dataclasses import dataclass, field


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
    """

    contrasts: tuple[str, ...] = ()
    size: tuple[int, int] = (128, 128)
    spacing: tuple[float, float] = (1.5, 1.5)
    split: Fractions = field(default_factory=Fractions)
    variables: tuple[str, ...] = ()
    intensity: Mapping[str, tuple[float, float]] | None = None
