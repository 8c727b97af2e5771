"""Pictures as data: URIs, and the geometry of the charts that the page draws as inline SVG."""

import base64
import math
import struct
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from grandrounds.report.arm import Arm, Curve
from grandrounds.report.facts import Facts
from grandrounds.report.folder import Image, Panel
from grandrounds.report.wording import wording

# Error colours from none to large; each step is darker, so the map also reads in grey.
RAMP = ((255, 255, 255), (254, 224, 182), (241, 145, 75), (190, 54, 38), (84, 12, 36))
ERROR_LIMITS = (0.1, 0.2, 0.3, 0.5, 1.0)
TINT = (150, 198, 219)
SAME = 1e-3  # closer greys are one structure


@dataclass(frozen=True)
class Style:
    """How an arm looks in every chart: never told by colour alone."""

    colour: str
    dash: str
    marker: str  # SVG path around (0, 0)


COLOURS = ("#0b5a78", "#b1481a", "#5d6470", "#7b4a96", "#2c7a4b", "#856404")
DASHES = ("none", "7 4", "2 3", "9 3 2 3", "4 2")
MARKERS = (
    "M-5 0a5 5 0 1 0 10 0a5 5 0 1 0 -10 0Z",
    "M-4.5 -4.5H4.5V4.5H-4.5Z",
    "M0 -5.5L5.5 4.5H-5.5Z",
    "M0 -6L6 0L0 6L-6 0Z",
    "M-5 -2H-2V-5H2V-2H5V2H2V5H-2V2H-5Z",
)


def style(number: int) -> Style:
    """Give the look of the arm at this place in the order."""
    return Style(
        COLOURS[number % len(COLOURS)], DASHES[number % len(DASHES)], MARKERS[number % len(MARKERS)]
    )


def tint(share: float) -> str:
    """Give a background from white (0) to a blue (1) on which dark figures stay legible."""
    red, green, blue = (round(255 + share * (end - 255)) for end in TINT)
    return f"#{red:02x}{green:02x}{blue:02x}"


def png(pixels: NDArray[np.uint8], palette: bytes = b"") -> str:
    """Encode (H, W) bytes as a PNG in a data: URI: grey, or by a palette of 256 RGB colours."""
    height, width = pixels.shape
    colour_type = 3 if palette else 0
    header = struct.pack(">IIBBBBB", width, height, 8, colour_type, 0, 0, 0)
    rows = np.pad(pixels, ((0, 0), (1, 0))).tobytes()  # each row starts with its filter, 0
    chunks = [_chunk(b"IHDR", header), _chunk(b"PLTE", palette) if palette else b""]
    chunks += [_chunk(b"IDAT", zlib.compress(rows, 9)), _chunk(b"IEND", b"")]
    raw = b"\x89PNG\r\n\x1a\n" + b"".join(chunks)
    return f"data:image/png;base64,{base64.b64encode(raw).decode()}"


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def grey(image: Image) -> str:
    """Show an image in [0, 1] in greys, black to white."""
    return png(_bytes(image))


def error_map(panel: Panel, limit: float, *, graded: bool = True) -> str:
    """Show |prediction - target| from 0 (white) to `limit` (darkest), or only where they differ."""
    errors = np.abs(panel.prediction - panel.target)
    return png(_bytes(errors / limit if graded else 0.75 * (errors > SAME)), _palette())


def _bytes(image: NDArray[np.floating]) -> NDArray[np.uint8]:
    return np.rint(np.clip(image, 0, 1) * 255).astype(np.uint8)


def _palette() -> bytes:
    anchors = np.array(RAMP, dtype=np.float64)
    places = np.linspace(0, 255, len(anchors))
    colours = [np.interp(np.arange(256), places, anchors[:, channel]) for channel in range(3)]
    return np.rint(np.stack(colours, 1)).astype(np.uint8).tobytes()


def error_limit(panels: Iterable[Panel]) -> float:
    """Choose one scale for all error maps: the first limit that clips under 0.5 % of pixels."""
    errors = [np.abs(panel.prediction - panel.target).ravel() for panel in panels]
    large = float(np.quantile(np.concatenate(errors), 0.995)) if errors else 0.0
    return next((limit for limit in ERROR_LIMITS if large <= limit), ERROR_LIMITS[-1])


@dataclass(frozen=True)
class Shown:
    """One arm's pictures in a panel, and the patient's mean score."""

    arm: Arm
    value: float | None
    made: str
    error: str


@dataclass(frozen=True)
class PanelRow:
    """Source and target of one patient, with the arms that chose this patient."""

    source: str
    target: str
    shape: str  # width / height, as CSS writes it
    shown: tuple[Shown, ...]


def panel_rows(facts: Facts, site: str, *, task: str, limit: float) -> list[PanelRow]:
    """Draw the pictures of one site and task; arms that chose the same patient share a row."""
    groups: dict[tuple[str, bytes], list[tuple[Arm, Panel]]] = {}
    for arm, panel in facts.panels(site, task):
        groups.setdefault((panel.patient, panel.target.tobytes()), []).append((arm, panel))
    metric = facts.main_metric.key if facts.main_metric else ""
    return [_panel_row(pairs, metric, limit) for pairs in groups.values()]


def _panel_row(pairs: Sequence[tuple[Arm, Panel]], metric: str, limit: float) -> PanelRow:
    first = pairs[0][1]
    shown = [_shown(arm, panel, metric, limit) for arm, panel in pairs]
    height, width = first.target.shape
    return PanelRow(grey(first.source), grey(first.target), f"{width} / {height}", tuple(shown))


def _shown(arm: Arm, panel: Panel, metric: str, limit: float) -> Shown:
    patients = arm.scores.get((panel.site, panel.task, metric), {})
    graded = wording(arm.study.task).graded
    error = error_map(panel, limit, graded=graded)
    return Shown(arm, patients.get(panel.patient), grey(panel.prediction), error)


@dataclass(frozen=True)
class Axis:
    """A stretch of values, and its round tick marks."""

    low: float
    high: float
    ticks: tuple[float, ...]

    def share(self, value: float) -> float:
        """Place a value between 0 (low end) and 1 (high end)."""
        return (value - self.low) / (self.high - self.low)


def axis(values: Iterable[float], *, smallest_step: float = 0.001) -> Axis:
    """Find round ends that hold all values, in at most some six steps of 1, 2 or 5."""
    found = list(values)
    low, high = min(found), max(found)
    rough = max((high - low) / 6, smallest_step)
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * factor for factor in (1, 2, 5, 10) if rough <= power * factor * 1.0001)
    first, last = math.floor(low / step), math.ceil(high / step)
    last = max(last, first + 1)
    ticks = tuple(round(number * step, 6) for number in range(first, last + 1))
    return Axis(ticks[0], ticks[-1], ticks)


@dataclass(frozen=True)
class Line:
    """One arm's curve in a chart, in the chart's own units."""

    style: Style
    points: str
    end: tuple[float, float]


@dataclass(frozen=True)
class Chart:
    """A small line chart: validation score over rounds."""

    title: str
    description: str
    lines: tuple[Line, ...]
    x_ticks: tuple[tuple[float, str], ...]
    y_ticks: tuple[tuple[float, str], ...]


WIDTH, HEIGHT = 340, 210
LEFT, RIGHT, TOP, BOTTOM = 38, 328, 12, 178


def charts(facts: Facts) -> list[Chart]:
    """Draw the learning curves, weighted first and then per site, all on one scale."""
    named = [("All hospitals, weighted", [arm.weighted for arm in facts.arms])]
    named += [(s, [arm.curves.get(s, ()) for arm in facts.arms]) for s in facts.sites]
    points = [point for _, curves in named for curve in curves for point in curve]
    if not points:
        return []
    x = axis([0, *(round for round, _ in points)], smallest_step=1)
    y = axis(score for _, score in points)
    titles = [arm.title for arm in facts.arms]
    what = "Validation score per round"
    return [_chart(title, what, titles, curves, x=x, y=y) for title, curves in named if any(curves)]


def forgetting(facts: Facts) -> Chart | None:
    """Draw what a site loses on average between its turn and its cycle's end, cycle by cycle."""
    curves = [
        tuple((c.round, c.mean_lost) for c in arm.cycles if c.mean_lost is not None)
        for arm in facts.arms
    ]
    points = [point for curve in curves for point in curve]
    if len({round for round, _ in points}) < 2:
        return None
    x = axis([0, *(round for round, _ in points)], smallest_step=1)
    y = axis([0.0, *(lost for _, lost in points)])
    titles = [arm.title for arm in facts.arms]
    what = "Lost between a hospital's own turn and the end of its cycle"
    return _chart("Lost, mean over hospitals", what, titles, curves, x=x, y=y)


def _chart(
    title: str, what: str, arms: Sequence[str], curves: Sequence[Curve], *, x: Axis, y: Axis
) -> Chart:
    drawn = [(number, curve) for number, curve in enumerate(curves) if curve]
    said = [f"{arms[n]} from {c[0][1]:.3g} to {c[-1][1]:.3g}" for n, c in drawn]
    return Chart(
        title=title,
        description=f"{what}: {'; '.join(said)}.",
        lines=tuple(_line(number, curve, x=x, y=y) for number, curve in drawn),
        x_ticks=tuple((_across(x, tick), f"{tick:g}") for tick in x.ticks),
        y_ticks=tuple((_down(y, tick), f"{tick:g}") for tick in y.ticks),
    )


def _line(number: int, curve: Curve, *, x: Axis, y: Axis) -> Line:
    places = [(_across(x, round), _down(y, score)) for round, score in curve]
    return Line(style(number), " ".join(f"{a},{b}" for a, b in places), places[-1])


def _across(x: Axis, value: float) -> float:
    return round(LEFT + x.share(value) * (RIGHT - LEFT), 1)


def _down(y: Axis, value: float) -> float:
    return round(BOTTOM - y.share(value) * (BOTTOM - TOP), 1)
