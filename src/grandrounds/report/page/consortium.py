"""The consortium's page: sites' statistics side by side, as one HTML file that opens offline."""

from collections.abc import Sequence
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from grandrounds.core.files import write_text
from grandrounds.core.site_statistics import HISTOGRAM_BINS
from grandrounds.report.analysis.consortium import (
    ALIKE,
    Consortium,
    distribution_rows,
    shares_of,
    unmet_rows,
)
from grandrounds.report.page import style
from grandrounds.report.page.charts import BOTTOM, LEFT, RIGHT, TOP, Chart, ChartLine
from grandrounds.report.prose import vocabulary
from grandrounds.report.prose.vocabulary import tick

_TICKS = (0.0, 0.25, 0.5, 0.75, 1.0)


def write_consortium(consortium: Consortium, path: Path) -> Path:
    """Write the page of sites' statistics, whole or not at all. Raises `DiskFailed`."""
    write_text(
        path,
        render_consortium(consortium),
        refusal="{path}: the page cannot be written: {reason}",
    )
    return path


def render_consortium(consortium: Consortium) -> str:
    """Return the page of sites' statistics."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    looks = {site.site: style.style(number) for number, site in enumerate(consortium.sites)}
    return environment.get_template("consortium.html.j2").render(
        found=consortium,
        charts=intensity_charts(consortium),
        rows=distribution_rows(consortium),
        unmet=unmet_rows(consortium),
        looks=looks,
        alike=ALIKE,
        styles={},
        words=vocabulary,
    )


def intensity_charts(consortium: Consortium) -> list[Chart]:
    """Return a chart of each contrast's intensities, a line for each site that tells them."""
    charts: list[Chart] = []
    for contrast in consortium.contrasts:
        found = [(n, shares_of(site, contrast)) for n, site in enumerate(consortium.sites)]
        told = [(number, shares) for number, shares in found if shares]
        if told:
            charts.append(_chart(contrast, told, consortium))
    return charts


def _chart(
    contrast: str, told: Sequence[tuple[int, tuple[float, ...]]], consortium: Consortium
) -> Chart:
    up = style.axis([0.0, *(100 * share for _, shares in told for share in shares)])
    names = [vocabulary.display_name(consortium.sites[number].site) for number, _ in told]
    peaks = [(shares.index(max(shares)) + 0.5) / HISTOGRAM_BINS for _, shares in told]
    said = [f"{name} is highest at {peak:.2f}" for name, peak in zip(names, peaks, strict=True)]
    return Chart(
        title=contrast,
        description=f"Shares of voxels by intensity: {'; '.join(said)}.",
        across="intensity after preparation",
        up="share of voxels, %",
        lines=tuple(_line(number, shares, up) for number, shares in told),
        x_ticks=tuple((_across(mark), tick(mark)) for mark in _TICKS),
        y_ticks=tuple((_up(mark, up), tick(mark)) for mark in up.ticks),
    )


def _line(number: int, shares: Sequence[float], up: style.Axis) -> ChartLine:
    points = [
        (_across((place + 0.5) / HISTOGRAM_BINS), _up(100 * share, up))
        for place, share in enumerate(shares)
    ]
    marks = tuple(points[number % 3 :: 4])
    return ChartLine(style.style(number), " ".join(f"{x},{y}" for x, y in points), "", marks)


def _across(intensity: float) -> float:
    return round(LEFT + intensity * (RIGHT - LEFT), 1)


def _up(share: float, up: style.Axis) -> float:
    return round(BOTTOM - up.share(share) * (BOTTOM - TOP), 1)
