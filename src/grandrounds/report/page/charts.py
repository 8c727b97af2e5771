"""The geometry of the page's charts is computed here: curves over rounds, drawn as inline SVG."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import TypeAlias

from grandrounds.report.analysis.arm import Arm
from grandrounds.report.analysis.facts import Facts
from grandrounds.report.analysis.run import Curve
from grandrounds.report.page.style import Axis, Style, axis, styles
from grandrounds.report.prose.vocabulary import tick, wording

LEFT, RIGHT, TOP, BOTTOM = 42, 430, 24, 184
MOST_TICKS = 6
MOST_MARKS = 12  # more of them on one line hide it
SCORE = "Validation score per round"
FORGOTTEN = "Lost between a hospital's own turn and the end of its cycle"
Band: TypeAlias = tuple[tuple[int, float, float, float], ...]  # (round, mean, lowest, highest)


@dataclass(frozen=True)
class ChartLine:
    """One arm's curve in a chart, in the chart's own units; `band` is its range over seeds.

    `marks` are the validated rounds that carry the arm's marker, the last one always.
    """

    style: Style
    points: str
    band: str
    marks: tuple[tuple[float, float], ...]


@dataclass(frozen=True)
class Chart:
    """A small line chart over rounds; `across` and `up` name its axes."""

    title: str
    description: str
    across: str
    up: str
    lines: tuple[ChartLine, ...]
    x_ticks: tuple[tuple[float, str], ...]
    y_ticks: tuple[tuple[float, str], ...]


def over_seeds(curves: Sequence[Curve]) -> Band:
    """Return mean and range over seeds, for the rounds that every seed has."""
    found = [dict(curve) for curve in curves if curve]
    rounds = sorted(set[int].intersection(*(set(curve) for curve in found))) if found else []
    values = {number: [curve[number] for curve in found] for number in rounds}
    return tuple((n, fmean(each), min(each), max(each)) for n, each in values.items())


def weighted(arm: Arm) -> Band:
    """Return an arm's weighted validation score."""
    return over_seeds([run.weighted for run in arm.runs])


def curves_at_site(arm: Arm, site: str) -> Band:
    """Return an arm's validation score at one site."""
    return over_seeds([run.curves.get(site, ()) for run in arm.runs])


@dataclass(frozen=True)
class Canvas:
    """The styles and the scales that charts which are read together share."""

    looks: Mapping[str, Style]
    x: Axis
    y: Axis
    across: str
    up: str

    def x_of(self, number: float) -> float:
        """Return a round's horizontal place."""
        return round(LEFT + self.x.share(number) * (RIGHT - LEFT), 1)

    def y_of(self, value: float) -> float:
        """Return a value's vertical place."""
        return round(BOTTOM - self.y.share(value) * (BOTTOM - TOP), 1)


def charts(facts: Facts) -> list[Chart]:
    """Return the learning curves of the notable arms, weighted first and then per site."""
    canvas = _learning(facts)
    bands = {"All hospitals, weighted": [(arm, weighted(arm)) for arm in facts.notable]}
    bands |= {
        site: [(arm, curves_at_site(arm, site)) for arm in facts.notable] for site in facts.sites
    }
    found = {title: _present(pairs) for title, pairs in bands.items()}
    return [_chart(title, SCORE, pairs, canvas) for title, pairs in found.items() if pairs]


def folded_charts(facts: Facts) -> list[Chart]:
    """Return a chart of each arm that is not notable beside the first arm, weighted over sites."""
    canvas, first = _learning(facts), facts.arms[0]
    pairs = [_present((one, weighted(one)) for one in (first, arm)) for arm in facts.others]
    return [_chart(pair[-1][0].title, SCORE, pair, canvas) for pair in pairs if pair]


def _learning(facts: Facts) -> Canvas:
    bands = [weighted(arm) for arm in facts.arms]
    bands += [curves_at_site(arm, site) for arm in facts.notable for site in facts.sites]
    return _canvas(facts, bands, "round", f"validation {_named(facts)}")


def _named(facts: Facts) -> str:
    watched = wording(facts.arms[0].study.task).watched
    return f"{watched.label}, {watched.unit}" if watched.unit else watched.label


def _canvas(facts: Facts, bands: Iterable[Band], across: str, up: str, *also: float) -> Canvas:
    points = [point for band in bands for point in band]
    values = [value for _, _, low, high in points for value in (low, high)]
    rounds = sorted({number for number, *_ in points})
    x = Axis(0, max(rounds[-1], 1) if rounds else 1, thinned(rounds, MOST_TICKS))
    return Canvas(styles(facts), x, axis([*values, *also] or [0.0]), across, up)


def thinned(rounds: Sequence[int], most: int) -> tuple[int, ...]:
    """Return at most so many of these rounds, evenly chosen, the last one among them."""
    step = math.ceil(len(rounds) / most) if rounds else 1
    return tuple(rounds[::-1][::step][::-1])


def _present(pairs: Iterable[tuple[Arm, Band]]) -> list[tuple[Arm, Band]]:
    return [(arm, band) for arm, band in pairs if band]


def forgetting_chart(facts: Facts) -> Chart | None:
    """Return a chart of a site's mean loss between its turn and its cycle's end, by cycle."""
    arms = _present((arm, _lost(arm)) for arm in facts.arms)
    if len({number for _, band in arms for number, *_ in band}) < 2:
        return None
    bands = [band for _, band in arms]
    canvas = _canvas(facts, bands, "cycle", f"lost, {_named(facts)}", 0.0)
    return _chart("Lost, mean over hospitals", FORGOTTEN, arms, canvas)


def _lost(arm: Arm) -> Band:
    found = [[(c.round, c.mean_lost) for c in run.cycles] for run in arm.runs]
    return over_seeds([tuple((n, lost) for n, lost in each if lost is not None) for each in found])


def _chart(title: str, what: str, arms: Sequence[tuple[Arm, Band]], canvas: Canvas) -> Chart:
    said = [f"{arm.title} from {band[0][1]:.3g} to {band[-1][1]:.3g}" for arm, band in arms]
    return Chart(
        title=title,
        description=f"{what}: {'; '.join(said)}.",
        across=canvas.across,
        up=canvas.up,
        lines=tuple(_line(arm, band, canvas) for arm, band in arms),
        x_ticks=tuple((canvas.x_of(mark), tick(mark)) for mark in canvas.x.ticks),
        y_ticks=tuple((canvas.y_of(mark), tick(mark)) for mark in canvas.y.ticks),
    )


def _line(arm: Arm, band: Band, canvas: Canvas) -> ChartLine:
    middle = [(canvas.x_of(number), canvas.y_of(mean)) for number, mean, *_ in band]
    above = [(canvas.x_of(number), canvas.y_of(high)) for number, *_, high in band]
    below = [(canvas.x_of(number), canvas.y_of(low)) for number, _, low, _ in band]
    ranged = _joined([*above, *reversed(below)]) if above != below else ""
    marks = thinned(range(len(middle)), MOST_MARKS)
    return ChartLine(
        canvas.looks[arm.name], _joined(middle), ranged, tuple(middle[place] for place in marks)
    )


def _joined(places: Iterable[tuple[float, float]]) -> str:
    return " ".join(f"{across},{down}" for across, down in places)
