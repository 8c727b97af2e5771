"""A paper's pictures: every site's model at every site, and the median patients' images."""

# pyright: reportUnknownMemberType=false

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from grandrounds.report.arm import Arm
from grandrounds.report.crossing import Crossing
from grandrounds.report.facts import Facts
from grandrounds.report.metrics import Metric
from grandrounds.report.panels import Panel
from grandrounds.report.pictures import Choice
from grandrounds.report.plotting import MIDDLE, TALL, WIDE
from grandrounds.report.run import Run
from grandrounds.report.wording import wording
from grandrounds.report.words import arrow, shown

MAP = "cividis"  # even steps of lightness: the same to colour-blind readers and in grey
LETTER = 0.066  # inches of a small letter
NARROW = 13  # letters that fit above a picture
FRAME = 2.0
MARGIN, SMALLEST, LARGEST = 0.7, 0.8, 1.3  # inches: beside the pictures, and their sides


def matrix_figure(crossing: Crossing) -> Figure:
    """Draw the score of each site's model (rows) at each site (columns); its own is framed."""
    values, metric = _grid(crossing), crossing.metric
    side = min(0.62 * len(crossing.sites), WIDE - 2)
    figure = Figure(figsize=(max(MIDDLE, side + 2), side + 1.1), layout="constrained")
    axes = figure.subplots()
    image = axes.imshow(np.ma.masked_invalid(values), cmap=MAP)
    names = [shown(site) for site in crossing.sites]
    upright = max(map(len, names)) * LETTER > side / len(names)
    axes.set_xticks(range(len(names)), names, rotation=90 if upright else 0)
    axes.set_yticks(range(len(crossing.models)), [shown(m) for m in crossing.models])
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    axes.set_xlabel("Test patients of")
    axes.set_ylabel("Model of")
    _numbers(axes, values, metric)
    _own(axes, crossing)
    unit = f" ({metric.unit})" if metric.unit else ""
    figure.colorbar(image, ax=axes, label=f"{crossing.arm.title}: test {metric.label}{unit}")
    return figure


def _grid(crossing: Crossing) -> NDArray[np.float64]:
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


def _own(axes: Axes, crossing: Crossing) -> None:
    for row, model in enumerate(crossing.models):
        if model in crossing.sites:
            left, top = crossing.sites.index(model) - 0.5, row - 0.5
            inside = axes.inset_axes(
                (left, top, 1, 1), transform=axes.transData, facecolor="none", xticks=[], yticks=[]
            )
            inside.spines[:].set(visible=True, linewidth=FRAME, color="black")


def panels_figure(facts: Facts, chosen: Sequence[Choice]) -> Figure | None:
    """Draw source, target and the notable arms' predictions of one patient of each site.

    The same patient for all arms; the figure above a prediction is that patient's score.
    """
    arms = [arm for arm in facts.notable if any(arm is one for c in chosen for one, *_ in c.panels)]
    if not arms:
        return None
    columns = len(arms) + 2
    side = min((WIDE - MARGIN) / columns, LARGEST, max(TALL / len(chosen) - 0.2, SMALLEST))
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


def _patient(places: Sequence[Axes], choice: Choice, facts: Facts, arms: Sequence[Arm]) -> None:
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
    places[0].set_ylabel(f"{shown(choice.site)}\n{arrow(choice.task)}")


def _prediction(axes: Axes, made: tuple[Run, Panel] | None, metric: Metric | None) -> None:
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
    """Break a title into lines that fit above a picture."""
    lines = [""]
    for word in head.split():
        joined = f"{lines[-1]} {word}".strip()
        lines = [*lines[:-1], joined] if len(joined) <= NARROW else [*lines, word]
    return [line for line in lines if line]
