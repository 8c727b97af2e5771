"""A paper's charts are drawn here: gains of hospitals, overall scores of arms, learning curves."""

# pyright: reportUnknownMemberType=false

import math
import textwrap
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from grandrounds.report.analysis.arm import Arm
from grandrounds.report.analysis.cross_site import CrossSiteMatrix
from grandrounds.report.analysis.facts import Facts
from grandrounds.report.analysis.folder import StoredPanel
from grandrounds.report.analysis.metrics import Metric
from grandrounds.report.analysis.run import Run
from grandrounds.report.analysis.statistics import LEVEL, Interval
from grandrounds.report.page.charts import MOST_TICKS, Band, curves_at_site, thinned, weighted
from grandrounds.report.page.pictures import PanelChoice
from grandrounds.report.page.style import Style, styles
from grandrounds.report.page.tables import Gain, site_gains
from grandrounds.report.paper.style import (
    MIDDLE,
    ROW,
    TALL,
    WIDE,
    dash_of,
    marker_of,
    rows_of,
)
from grandrounds.report.prose.vocabulary import arrow, display_name, gained, wording

MAP = "cividis"  # even steps of lightness, which colour-blind readers see and which print in grey
LETTER = 0.066  # inches of a small letter
NARROW = 13  # letters that fit above a picture
FRAME = 2.0
MARGIN, _SMALLEST, LARGEST = 0.7, 0.8, 1.3  # inches: beside the pictures, and their sides


def matrix_figure(crossing: CrossSiteMatrix) -> Figure:
    """Draw the score of each site's model (rows) at each site (columns); the diagonal is framed."""
    values, metric = _grid(crossing), crossing.metric
    side = min(0.62 * len(crossing.sites), WIDE - 2)
    figure = Figure(figsize=(max(MIDDLE, side + 2), side + 1.1), layout="constrained")
    axes = figure.subplots()
    image = axes.imshow(np.ma.masked_invalid(values), cmap=MAP)
    names = [display_name(site) for site in crossing.sites]
    upright = max(map(len, names)) * LETTER > side / len(names)
    axes.set_xticks(range(len(names)), names, rotation=90 if upright else 0)
    axes.set_yticks(range(len(crossing.models)), [display_name(m) for m in crossing.models])
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    axes.set_xlabel("Test patients of")
    axes.set_ylabel("Model of")
    _numbers(axes, values, metric)
    _own(axes, crossing)
    unit = f" ({metric.unit})" if metric.unit else ""
    figure.colorbar(image, ax=axes, label=f"{crossing.arm.title}: test {metric.label}{unit}")
    return figure


def _grid(crossing: CrossSiteMatrix) -> NDArray[np.float64]:
    missing = float("nan")
    return np.array(
        [[row.get(site, missing) for site in crossing.sites] for row in crossing.means.values()]
    )


def _numbers(axes: Axes, values: NDArray[np.float64], metric: Metric) -> None:
    low, high = float(np.nanmin(values)), float(np.nanmax(values))
    size = 7.5 if values.shape[1] <= 8 else 5
    for (row, column), value in np.ndenumerate(values):
        if not np.isnan(value):
            dark = high > low and (value - low) / (high - low) < 0.5
            colour = "white" if dark else "black"
            text = f"{value:.{1 if metric.unit else 2}f}"
            axes.text(column, row, text, ha="center", va="center", color=colour, fontsize=size)


def _own(axes: Axes, crossing: CrossSiteMatrix) -> None:
    for row, model in enumerate(crossing.models):
        if model in crossing.sites:
            left, top = crossing.sites.index(model) - 0.5, row - 0.5
            inside = axes.inset_axes(
                (left, top, 1, 1), transform=axes.transData, facecolor="none", xticks=[], yticks=[]
            )
            inside.spines[:].set(visible=True, linewidth=FRAME, color="black")


def panels_figure(facts: Facts, chosen: Sequence[PanelChoice]) -> Figure | None:
    """Draw source, target and the notable arms' predictions of one patient of each site.

    The patient is the same for all arms; the number above a prediction is the patient's score.
    """
    arms = [arm for arm in facts.notable if any(arm is one for c in chosen for one, *_ in c.panels)]
    if not arms:
        return None
    columns = len(arms) + 2
    side = min((WIDE - MARGIN) / columns, LARGEST, max(TALL / len(chosen) - 0.2, _SMALLEST))
    size = (MARGIN + side * columns, 0.5 + (side + 0.2) * len(chosen))
    figure = Figure(figsize=size, layout="constrained")
    figure.get_layout_engine().set(w_pad=0.01, h_pad=0.01, wspace=0, hspace=0)  # pyright: ignore
    grid = figure.subplots(len(chosen), columns, squeeze=False)
    for axes, choice in zip(grid, chosen, strict=True):
        _patient(list(axes), choice, facts, arms)
    said = wording(facts.arms[0].study.task)
    for axes, head in zip(grid[0], ["Source", said.target, *(a.title for a in arms)], strict=True):
        _headed(axes, head)
    return figure


def _patient(
    places: Sequence[Axes], choice: PanelChoice, facts: Facts, arms: Sequence[Arm]
) -> None:
    first = choice.panels[0][2]
    found = {arm.name: (run, panel) for arm, run, panel in choice.panels}
    images = [first.source, first.target]
    made = [found.get(arm.name) for arm in arms]
    for axes, image in zip(places, images, strict=False):
        axes.imshow(image, cmap="gray", vmin=0, vmax=1, interpolation="nearest")
    for axes, one in zip(places[2:], made, strict=True):
        _prediction(axes, one, facts.main_metric)
    for axes in places:
        axes.set(xticks=[], yticks=[])
        axes.spines[:].set_visible(False)
    places[0].set_ylabel(f"{display_name(choice.site)}\n{arrow(choice.task)}")


def _prediction(axes: Axes, made: tuple[Run, StoredPanel] | None, metric: Metric | None) -> None:
    if made is None:
        axes.text(0.5, 0.5, "not kept", ha="center", va="center", transform=axes.transAxes)
        return
    run, panel = made
    axes.imshow(panel.prediction, cmap="gray", vmin=0, vmax=1, interpolation="nearest")
    scores = run.scores.get((panel.site, panel.task, metric.key)) if metric else None
    if metric and scores and panel.patient in scores:
        value = scores[panel.patient]
        text = f"{value:.{1 if metric.unit else 2}f} {metric.unit}".rstrip()
        axes.set_xlabel(text, labelpad=1, fontsize=7)


def _headed(axes: Axes, head: str) -> None:
    axes.set_title("\n".join(_lines(head)), fontsize=7.5)


def _lines(head: str) -> list[str]:
    """Return a title as lines that fit above a picture."""
    lines = [""]
    for word in head.split():
        joined = f"{lines[-1]} {word}".strip()
        lines = [*lines[:-1], joined] if len(joined) <= NARROW else [*lines, word]
    return [line for line in lines if line]


ACROSS = 3  # number of charts side by side
LETTERS = 34  # letters of a line beside a chart; below it there is room for twice as many
OUTSIDE = 1.02  # just right of the axes, in shares of their width


def gains_figure(facts: Facts) -> Figure | None:
    """Draw the first arm's gain over the best local-only arm, hospital by hospital.

    A filled dot is a clear difference, a hollow one is not.
    """
    metric, gains = facts.main_metric, site_gains(facts).rows
    if metric is None or not gains:
        return None
    figure = Figure(figsize=(MIDDLE, 0.75 + 1.55 * ROW * len(gains)), layout="constrained")
    axes = rows_of(figure, [_gain_label(gain) for gain in gains])
    axes.axvline(0, color="black", linewidth=0.9)
    look = styles(facts)[facts.arms[0].name]
    for place, gain in enumerate(gains):
        _gain(axes, place, gain, metric, look)
    if len(gains) > 1:
        axes.axhline(len(gains) - 1.5, color="#9aa0a8", linewidth=0.6)
    what = f"{facts.arms[0].title} minus best local-only, test {_labelled(metric)}"
    bar = f"; bar: {LEVEL} % interval" if facts.has_intervals else ""
    filled = "; filled: clear" if facts.has_tests else ""
    axes.set_xlabel(f"{textwrap.fill(what, 2 * LETTERS)}\n(above 0: better{bar}{filled})")
    return figure


def _gain_label(gain: Gain) -> str:
    return "\n".join([gain.label, *textwrap.wrap(f"vs {gain.against}", LETTERS)])


def _gain(axes: Axes, place: int, gain: Gain, metric: Metric, look: Style) -> None:
    _bar(axes, place, gain.paired.interval, look.colour)
    fill = look.colour if gain.clear else "white"
    axes.plot(gain.paired.mean, place, marker_of(look), color=look.colour, markerfacecolor=fill)
    axes.annotate(
        gained(gain.paired.mean, metric),
        (OUTSIDE, place),
        xycoords=axes.get_yaxis_transform(),
        va="center",
    )


def _bar(axes: Axes, place: float, interval: Interval | None, colour: str) -> None:
    if interval is not None:
        axes.plot([interval.low, interval.high], [place, place], color=colour, linewidth=1.6)


def overall_figure(facts: Facts) -> Figure | None:
    """Draw every arm's mean over hospitals, its interval over patients, and its seeds."""
    metric = facts.main_metric
    arms = [arm for arm in facts.arms if metric and arm.overall(metric.key)]
    if metric is None or not arms:
        return None
    figure = Figure(figsize=(MIDDLE, 0.75 + 1.15 * ROW * len(arms)), layout="constrained")
    axes = rows_of(figure, [textwrap.fill(arm.title, LETTERS) for arm in arms])
    looks = styles(facts)
    for place, arm in enumerate(arms):
        _standing(axes, place, arm, metric, looks[arm.name])
    bar = f"; bar: {LEVEL} % interval over patients" if facts.has_intervals else ""
    seeds = "; ticks: seeds" if len(facts.seeds) > 1 else ""
    axes.set_xlabel(
        f"Test {_labelled(metric)}, mean over hospitals\n({_direction(metric)}{bar}{seeds})"
    )
    return figure


def _standing(axes: Axes, place: int, arm: Arm, metric: Metric, look: Style) -> None:
    overall = arm.overall(metric.key)
    assert overall is not None
    _bar(axes, place, overall.interval, look.colour)
    by_seed = arm.overall_by_seed(metric.key)
    if len(by_seed) > 1:
        axes.plot(list(by_seed.values()), [place + 0.27] * len(by_seed), "|", color=look.colour)
    axes.plot(overall.mean, place, marker_of(look), color=look.colour)
    text = f"{overall.mean:.{2 if metric.unit else 3}f}"
    axes.annotate(text, (OUTSIDE, place), xycoords=axes.get_yaxis_transform(), va="center")


def curves_figure(facts: Facts) -> Figure | None:
    """Draw the notable arms' validation scores: mean over seeds, and their range as a band."""
    arms = [arm for arm in facts.notable if weighted(arm)]
    if not arms:
        return None
    charts = {"All hospitals": [weighted(arm) for arm in arms]}
    charts |= {
        display_name(site): [curves_at_site(arm, site) for arm in arms] for site in facts.sites
    }
    charts = {title: bands for title, bands in charts.items() if any(bands)}
    down = math.ceil(len(charts) / ACROSS)
    figure = Figure(figsize=(WIDE, 0.6 + 1.75 * down), layout="constrained")
    grid = figure.subplots(down, ACROSS, sharex=True, sharey=True, squeeze=False)
    places = list(grid.flat)
    looks = styles(facts)
    for axes, (title, bands) in zip(places, charts.items(), strict=False):
        _curves(axes, title, bands, arms, looks)
    _rounds(places[0], charts["All hospitals"])
    for axes in places[len(charts) :]:
        axes.remove()
    _explain(figure, places[0], facts)
    return figure


def _curves(
    axes: Axes,
    title: str,
    bands: Sequence[Band],
    arms: Sequence[Arm],
    looks: Mapping[str, Style],
) -> None:
    axes.set_title(title, loc="left", fontweight="bold")
    axes.grid()
    axes.xaxis.set_tick_params(labelbottom=True)
    for number, (arm, band) in enumerate(zip(arms, bands, strict=True)):
        if band:
            _curve(axes, band, number, looks[arm.name], arm.title)


def _rounds(axes: Axes, bands: Sequence[Band]) -> None:
    """Put ticks at validated rounds only, the last one among them."""
    rounds = sorted({number for band in bands for number, *_ in band})
    axes.set_xlim(-0.03 * rounds[-1], 1.03 * rounds[-1])
    axes.set_xticks(thinned(rounds, MOST_TICKS))


def _curve(axes: Axes, band: Band, number: int, look: Style, label: str) -> None:
    rounds, means, lows, highs = zip(*band, strict=True)
    every = max(1, math.ceil(len(rounds) / 6))
    axes.plot(
        rounds,
        means,
        color=look.colour,
        linestyle=dash_of(look),
        marker=marker_of(look),
        markevery=(number % every, every),
        zorder=9 - number,  # the first arm lies on top
        label=label,
    )
    if lows != highs:
        axes.fill_between(rounds, lows, highs, color=look.colour, alpha=0.18, linewidth=0)


def _explain(figure: Figure, axes: Axes, facts: Facts) -> None:
    metric = wording(facts.arms[0].study.task).watched
    band = " (band: range over seeds)" if len(facts.seeds) > 1 else ""
    figure.supxlabel(f"Round{band}", fontsize=8)
    figure.supylabel(f"Validation {_labelled(metric)}", fontsize=8)
    lines, labels = axes.get_legend_handles_labels()
    across = 3 if max(len(label) for label in labels) > 24 else 4
    figure.legend(lines, labels, loc="outside upper center", ncols=across, handlelength=3.4)


def _labelled(metric: Metric) -> str:
    return f"{metric.label} ({metric.unit})" if metric.unit else metric.label


def _direction(metric: Metric) -> str:
    return f"{'higher' if metric.higher_is_better else 'lower'} is better"
