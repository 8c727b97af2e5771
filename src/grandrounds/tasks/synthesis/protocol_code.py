"""The physics of a scan becomes numbers that a network reads, by fixed constants.

Nothing is computed from data: equal protocols have equal codes at every site, in every study.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from math import log2

from grandrounds.data.acquisition import FAMILIES, ScanProtocol

FURTHEST = 4.0  # of any value from its centre, so that no odd header dominates a code


@dataclass(frozen=True)
class Standardisation:
    """How a quantity is standardised: 0 at `centre`, and 1 a `unit` above it.

    With `octaves` the unit is a number of doublings, so that what counts is the ratio.
    """

    centre: float
    unit: float
    octaves: bool

    def __call__(self, value: float) -> float:
        """Return a positive value in units from the centre, at most 4 from it."""
        apart = log2(value / self.centre) if self.octaves else value - self.centre
        return max(-FURTHEST, min(FURTHEST, apart / self.unit))


SCALES: Mapping[str, Standardisation] = {
    "repetition_time": Standardisation(2000.0, 2.0, octaves=True),  # ms
    "echo_time": Standardisation(20.0, 2.0, octaves=True),  # ms
    "inversion_time": Standardisation(1500.0, 1000.0, octaves=False),  # ms
    "flip_angle": Standardisation(60.0, 45.0, octaves=False),  # degrees
    "field_strength": Standardisation(2.0, 0.75, octaves=True),  # tesla
    "thickness": Standardisation(3.0, 1.0, octaves=True),  # mm
    "pixel": Standardisation(1.0, 1.0, octaves=True),  # mm
}
SIZE = 2 * len(SCALES) + len(FAMILIES) + 1  # of the code of one scan


def protocol_code(scan: ScanProtocol) -> tuple[float, ...]:
    """Return the code of one scan, `SIZE` numbers.

    For each of `SCALES` the standardised value and a bit that says that it is unknown (the value is
    0 then); afterwards the one-hot of the family, and a bit that says that this is unknown. The
    mapper's weights of these bits are what it learns to put in the place of an unknown value.
    """
    quantities = {
        **{name: getattr(scan.acquisition, name, None) for name in SCALES},
        "thickness": scan.thickness,
        "pixel": scan.pixel,
    }
    code: list[float] = []
    for name, scale in SCALES.items():
        value = quantities[name]
        code += [0.0, 1.0] if value is None else [scale(value), 0.0]
    family = scan.acquisition.family
    return (*code, *(float(family == each) for each in FAMILIES), float(family is None))
