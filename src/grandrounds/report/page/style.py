"""The styles of arms, pictures as data: URIs, and the axes of charts are defined here."""

import base64
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from io import BytesIO

import numpy as np
import PIL.Image
from numpy.typing import NDArray

from grandrounds.report.analysis.facts import Facts
from grandrounds.report.analysis.folder import Image, StoredPanel

# Error colours from none to large; each step is darker, so the map also reads in grey.
RAMP = ((255, 255, 255), (254, 224, 182), (241, 145, 75), (190, 54, 38), (84, 12, 36))
ERROR_LIMITS = (0.1, 0.2, 0.3, 0.5, 1.0)
TINT = (150, 198, 219)
AGAINST = (244, 170, 112)
FULL_PULL = 0.5  # the cosine from which on a background is as dark as it gets
SAME = 1e-3  # closer greys are one structure
WIDEST = 192  # pixels


@dataclass(frozen=True)
class Style:
    """An arm's style in every chart, which differs in more than colour."""

    colour: str
    dash: str
    marker: str  # SVG path around (0, 0)
    number: int = 0  # a paper's figures find the same marker and dash by it


# Okabe and Ito's colours, darkened: distinct for colour-blind readers, and 4.5 to 1 on white.
COLOURS = ("#0b5a78", "#b84a00", "#5d6470", "#a3407a", "#00735a", "#7a5c00")
_DASHES = ("none", "7 4", "2 3", "9 3 2 3", "4 2")
_MARKERS = (
    "M-5 0a5 5 0 1 0 10 0a5 5 0 1 0 -10 0Z",
    "M-4.5 -4.5H4.5V4.5H-4.5Z",
    "M0 -5.5L5.5 4.5H-5.5Z",
    "M0 -6L6 0L0 6L-6 0Z",
    "M-5 -2H-2V-5H2V-2H5V2H2V5H-2V2H-5Z",
)


def style(number: int) -> Style:
    """Return the style of the arm at this place in the order."""
    return Style(
        COLOURS[number % len(COLOURS)],
        _DASHES[number % len(_DASHES)],
        _MARKERS[number % len(_MARKERS)],
        number,
    )


def styles(facts: Facts) -> Mapping[str, Style]:
    """Map each arm's name to its style; the arms that are shown first differ most."""
    arms = (*facts.notable, *facts.others)
    return {arm.name: style(number) for number, arm in enumerate(arms)}


def tint(share: float) -> str:
    """Return a background from white (0) to a blue (1) on which dark figures stay legible."""
    return _between_white_and(TINT, share)


def _between_white_and(colour: tuple[int, int, int], share: float) -> str:
    red, green, blue = (round(255 + share * (end - 255)) for end in colour)
    return f"#{red:02x}{green:02x}{blue:02x}"


def pull(cosine: float) -> str:
    """Return a background from orange (against) over white (0) to blue (the same way)."""
    end = TINT if cosine > 0 else AGAINST
    return _between_white_and(end, min(1.0, abs(cosine) / FULL_PULL))


def png(pixels: NDArray[np.uint8], palette: bytes = b"") -> str:
    """Encode (H, W) bytes as a PNG in a data: URI: grey, or by a palette of 256 RGB colours."""
    picture, file = PIL.Image.fromarray(pixels), BytesIO()
    if palette:
        picture.putpalette(palette)
    picture.save(file, "png", compress_level=9)
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"


def grey(image: Image) -> str:
    """Encode an image in [0, 1] as a PNG in greys, black to white."""
    return png(_bytes(_thinned(image)))


def error_map(panel: StoredPanel, limit: float, *, graded: bool = True) -> str:
    """Encode |prediction - target| from 0 (white) to `limit` (darkest), or whether they differ."""
    errors = _thinned(np.abs(panel.prediction - panel.target))
    return png(_bytes(errors / limit if graded else 0.75 * (errors > SAME)), _palette())


def _thinned(image: Image) -> Image:
    """Return an image without the rows and columns that the page has no room for."""
    step = math.ceil(max(image.shape) / WIDEST)
    return image[::step, ::step]


def _bytes(image: NDArray[np.floating]) -> NDArray[np.uint8]:
    return np.rint(np.clip(image, 0, 1) * 255).astype(np.uint8)


def _palette() -> bytes:
    anchors = np.array(RAMP, dtype=np.float64)
    places = np.linspace(0, 255, len(anchors))
    colours = [np.interp(np.arange(256), places, anchors[:, channel]) for channel in range(3)]
    return np.rint(np.stack(colours, 1)).astype(np.uint8).tobytes()


def error_limit(panels: Iterable[StoredPanel]) -> float:
    """Return one scale for all error maps: the first limit that clips under 0.5 % of pixels."""
    errors = [np.abs(panel.prediction - panel.target).ravel() for panel in panels]
    large = float(np.quantile(np.concatenate(errors), 0.995)) if errors else 0.0
    return next((limit for limit in ERROR_LIMITS if large <= limit), ERROR_LIMITS[-1])


@dataclass(frozen=True)
class Axis:
    """A range of values, and its round tick marks."""

    low: float
    high: float
    ticks: tuple[float, ...]

    def share(self, value: float) -> float:
        """Return where a value lies between 0 (low end) and 1 (high end)."""
        return (value - self.low) / (self.high - self.low)


def axis(values: Iterable[float], *, smallest_step: float = 0.001) -> Axis:
    """Return an axis with round ends around all values, in about six steps of 1, 2 or 5 at most."""
    found = list(values)
    low, high = min(found), max(found)
    rough = max((high - low) / 6, smallest_step)
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * factor for factor in (1, 2, 5, 10) if rough <= power * factor * 1.0001)
    first, last = math.floor(low / step), math.ceil(high / step)
    last = max(last, first + 1)
    ticks = tuple(round(number * step, 6) for number in range(first, last + 1))
    return Axis(ticks[0], ticks[-1], ticks)
