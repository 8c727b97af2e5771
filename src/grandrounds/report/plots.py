"""A paper's charts: gains of hospitals, overall scores of arms, learning curves."""

# pyright: reportUnknownMemberType=false

import math
import textwrap
from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from grandrounds.report.arm import Arm
from grandrounds.report.charts import Band, at_site, weighted
from grandrounds.report.facts import Facts
from grandrounds.report.figures import COLOURS
from grandrounds.report.metrics import Metric
from grandrounds.report.plotting import DASHES, FIRST, MARKERS, MIDDLE, OTHER, ROW, WIDE, rows_of
from grandrounds.report.statistics import LEVEL, Interval
from grandrounds.report.tables import Gain, site_gains
from grandrounds.report.wording import wording
from grandrounds.report.words import gained, shown

ACROSS = 3  # charts side by side
LETTERS = 30  # of a line beside a chart; below it there is room for twice as many
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
    for place, gain in enumerate(gains):
        _gain(axes, place, gain, metric)
    if len(gains) > 1:
        axes.axhline(len(gains) - 1.5, color="#9aa0a8", linewidth=0.6)
    what = f"{facts.arms[0].title} minus best local-only, test {_labelled(metric)}"
    how = f"(above 0: better; bar: {LEVEL} % interval; filled: clear)"
    axes.set_xlabel(f"{textwrap.fill(what, 2 * LETTERS)}\n{how}")
    return figure


def _gain_label(gain: Gain) -> str:
    return f"{gain.label}\nvs {gain.against}"


def _gain(axes: Axes, place: int, gain: Gain, metric: Metric) -> None:
    _bar(axes, place, gain.paired.interval, FIRST)
    fill = FIRST if gain.clear else "white"
    marker = "D" if gain.composite else "o"
    axes.plot(gain.paired.mean, place, marker, color=FIRST, markerfacecolor=fill)
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
    for place, arm in enumerate(arms):
        _standing(axes, place, arm, metric, colour=FIRST if arm is facts.protagonist else OTHER)
    seeds = "; ticks: seeds" if len(facts.seeds) > 1 else ""
    axes.set_xlabel(
        f"Test {_labelled(metric)}, mean over hospitals\n"
        f"({_direction(metric)}; bar: {LEVEL} % interval over patients{seeds})"
    )
    return figure


def _standing(axes: Axes, place: int, arm: Arm, metric: Metric, *, colour: str) -> None:
    overall = arm.overall(metric.key)
    assert overall is not None
    marker = "s" if colour == FIRST else "o"
    fill = "white" if arm.local else colour
    _bar(axes, place, overall.interval, colour)
    by_seed = arm.overall_by_seed(metric.key)
    if len(by_seed) > 1:
        axes.plot(list(by_seed.values()), [place + 0.27] * len(by_seed), "|", color=colour)
    axes.plot(overall.mean, place, marker, color=colour, markerfacecolor=fill)
    text = f"{overall.mean:.{2 if metric.unit else 3}f}"
    axes.annotate(text, (OUTSIDE, place), xycoords=axes.get_yaxis_transform(), va="center")


def curves_figure(facts: Facts) -> Figure | None:
    """Draw the notable arms' validation scores: mean over seeds, and their range as a band."""
    arms = [arm for arm in facts.notable if weighted(arm)]
    if not arms:
        return None
    charts = {"All hospitals": [weighted(arm) for arm in arms]}
    charts |= {shown(site): [at_site(arm, site) for arm in arms] for site in facts.sites}
    charts = {title: bands for title, bands in charts.items() if any(bands)}
    down = math.ceil(len(charts) / ACROSS)
    figure = Figure(figsize=(WIDE, 0.6 + 1.75 * down), layout="constrained")
    grid = figure.subplots(down, ACROSS, sharex=True, sharey=True, squeeze=False)
    places = list(grid.flat)
    for axes, (title, bands) in zip(places, charts.items(), strict=False):
        _curves(axes, title, bands, arms)
    _rounds(places[0], charts["All hospitals"])
    for axes in places[len(charts) :]:
        axes.remove()
    _explain(figure, places[0], facts)
    return figure


def _curves(axes: Axes, title: str, bands: Sequence[Band], arms: Sequence[Arm]) -> None:
    axes.set_title(title, loc="left", fontweight="bold")
    axes.grid()
    axes.xaxis.set_tick_params(labelbottom=True)
    for number, (arm, band) in enumerate(zip(arms, bands, strict=True)):
        if band:
            _curve(axes, band, number, arm.title)


def _rounds(axes: Axes, bands: Sequence[Band]) -> None:
    last = max(number for band in bands for number, *_ in band)
    axes.set_xlim(-0.03 * last, 1.03 * last)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True, min_n_ticks=1))


def _curve(axes: Axes, band: Band, number: int, label: str) -> None:
    rounds, means, lows, highs = zip(*band, strict=True)
    colour = COLOURS[number % len(COLOURS)]
    every = max(1, math.ceil(len(rounds) / 6))
    axes.plot(
        rounds,
        means,
        color=colour,
        linestyle=DASHES[number % len(DASHES)],
        marker=MARKERS[number % len(MARKERS)],
        markevery=(number % every, every),
        zorder=9 - number,  # the first arm lies on top
        label=label,
    )
    if lows != highs:
        axes.fill_between(rounds, lows, highs, color=colour, alpha=0.18, linewidth=0)


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
