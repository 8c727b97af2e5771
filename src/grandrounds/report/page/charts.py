"""The geometry of the page's charts is computed here: curves over rounds, drawn as inline SVG."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import TypeAlias

from grandrounds.report.analysis.arm import Arm
from grandrounds.report.analysis.facts import Facts
from grandrounds.report.analysis.run import Curve
from grandrounds.report.page.style import Axis, Style, axis, styles
from grandrounds.report.prose.vocabulary import tick

WIDTH, HEIGHT = 440, 210
LEFT, RIGHT, TOP, BOTTOM = 38, 318, 12, 178
_LABEL = 13  # between the baselines of two labels
LONGEST = 19  # letters of a label
SCORE = "Validation score per round"
FORGOTTEN = "Lost between a hospital's own turn and the end of its cycle"
Band: TypeAlias = tuple[tuple[int, float, float, float], ...]  # (round, mean, lowest, highest)


@dataclass(frozen=True)
class ChartLine:
    """One arm's curve in a chart, in the chart's own units; `band` is its range over seeds."""

    style: Style
    points: str
    band: str
    end: tuple[float, float]
    label: str
    label_y: float


@dataclass(frozen=True)
class Chart:
    """A small line chart over rounds."""

    title: str
    description: str
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

    def across(self, number: float) -> float:
        """Return a round's horizontal place."""
        return round(LEFT + self.x.share(number) * (RIGHT - LEFT), 1)

    def down(self, value: float) -> float:
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
    return _canvas(facts, bands)


def _canvas(facts: Facts, bands: Iterable[Band], *also: float) -> Canvas:
    points = [point for band in bands for point in band]
    values = [value for _, _, low, high in points for value in (low, high)]
    x = axis([0, *(number for number, *_ in points)], smallest_step=1)
    return Canvas(styles(facts), x, axis([*values, *also] or [0.0]))


def _present(pairs: Iterable[tuple[Arm, Band]]) -> list[tuple[Arm, Band]]:
    return [(arm, band) for arm, band in pairs if band]


def forgetting_chart(facts: Facts) -> Chart | None:
    """Return a chart of a site's mean loss between its turn and its cycle's end, by cycle."""
    arms = _present((arm, _lost(arm)) for arm in facts.arms)
    if len({number for _, band in arms for number, *_ in band}) < 2:
        return None
    canvas = _canvas(facts, [band for _, band in arms], 0.0)
    return _chart("Lost, mean over hospitals", FORGOTTEN, arms, canvas)


def _lost(arm: Arm) -> Band:
    found = [[(c.round, c.mean_lost) for c in run.cycles] for run in arm.runs]
    return over_seeds([tuple((n, lost) for n, lost in each if lost is not None) for each in found])


def _chart(title: str, what: str, arms: Sequence[tuple[Arm, Band]], canvas: Canvas) -> Chart:
    said = [f"{arm.title} from {band[0][1]:.3g} to {band[-1][1]:.3g}" for arm, band in arms]
    labels = _apart([canvas.down(band[-1][1]) for _, band in arms])
    return Chart(
        title=title,
        description=f"{what}: {'; '.join(said)}.",
        lines=tuple(
            _line(arm, band, label, canvas) for (arm, band), label in zip(arms, labels, strict=True)
        ),
        x_ticks=tuple((canvas.across(mark), tick(mark)) for mark in canvas.x.ticks),
        y_ticks=tuple((canvas.down(mark), tick(mark)) for mark in canvas.y.ticks),
    )


def _line(arm: Arm, band: Band, label: float, canvas: Canvas) -> ChartLine:
    middle = [(canvas.across(number), canvas.down(mean)) for number, mean, *_ in band]
    above = [(canvas.across(number), canvas.down(high)) for number, *_, high in band]
    below = [(canvas.across(number), canvas.down(low)) for number, _, low, _ in band]
    ranged = _joined([*above, *reversed(below)]) if above != below else ""
    return ChartLine(
        canvas.looks[arm.name], _joined(middle), ranged, middle[-1], short(arm.title), label
    )


def _joined(places: Iterable[tuple[float, float]]) -> str:
    return " ".join(f"{across},{down}" for across, down in places)


def short(title: str) -> str:
    """Return a title, shortened to fit beside a chart."""
    return title if len(title) <= LONGEST else f"{title[: LONGEST - 1].rstrip(' (')}\u2026"


def _apart(wanted: Sequence[float]) -> list[float]:
    """Return places of labels without overlap, moved as little as a pass from the top allows."""
    found, lowest = dict[int, float](), float(TOP)
    order = sorted(range(len(wanted)), key=lambda number: wanted[number])
    for place, number in enumerate(order):
        room = BOTTOM - _LABEL * (len(order) - 1 - place)
        found[number] = round(min(max(wanted[number], lowest), room), 1)
        lowest = found[number] + _LABEL
    return [found[number] for number in range(len(wanted))]
