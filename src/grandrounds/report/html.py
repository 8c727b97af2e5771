"""One HTML file that opens offline: everything it shows is inside it, and it loads nothing."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from grandrounds.errors import DiskFailed
from grandrounds.report import figures, sentences, verdicts, words
from grandrounds.report.arm import Arm, Spread
from grandrounds.report.discrimination import LEVEL, MEANING
from grandrounds.report.facts import Facts, read_facts
from grandrounds.report.figures import Axis, PanelRow
from grandrounds.report.metrics import Metric
from grandrounds.report.wording import wording


@dataclass(frozen=True)
class Cell:
    """One score in a table, as text; `best` where no other arm prints a better one."""

    mean: str
    sd: str
    best: bool
    place: float | None = None  # per cent along the axis of the overview


@dataclass(frozen=True)
class ArmRow:
    """One arm's scores for one site and task."""

    arm: Arm
    cells: tuple[Cell, ...]
    patients: int


@dataclass(frozen=True)
class Block:
    """One site and task on the page."""

    task: str
    scores: tuple[ArmRow, ...]
    pictures: tuple[PanelRow, ...]
    note: str


def write_report(folder: Path) -> Path:
    """Write `report.html` into a run or comparison folder, whole or not at all, and give its path.

    Raises `BadFolder` or `DiskFailed`.
    """
    page = render(read_facts(folder))
    path, partial = folder / "report.html", folder / "report.html.partial"
    try:
        partial.write_text(page, encoding="utf-8")
        partial.replace(path)
    except OSError as error:
        raise DiskFailed(f"{path}: the report cannot be written: {error}") from error
    return path


def render(facts: Facts) -> str:
    """Make the page of these facts."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    limit = figures.error_limit(panel for arm in facts.arms for panel in arm.panels)
    return environment.get_template("template.html.j2").render(
        facts=facts,
        say=sentences,
        verdicts=verdicts,
        words=words,
        styles=[figures.style(number) for number in range(len(facts.arms))],
        charts=figures.charts(facts),
        forgetting=figures.forgetting(facts),
        views=views(facts),
        wording=wording(facts.arms[0].study.task),
        discriminating=facts.discrimination,
        level=LEVEL,
        auc_meaning=MEANING,
        imaging=any(any(ready.slices.values()) for ready in facts.ready.values()),
        ramp=figures.RAMP,
        tint=figures.tint,
        limit=limit,
        overview=overview(facts),
        blocks={site: blocks(facts, site, limit) for site in facts.sites},
        columns=2 + len(facts.arms),
    )


def blocks(facts: Facts, site: str, limit: float) -> list[Block]:
    """Lay out the scores and pictures of a site, task by task."""
    return [
        Block(
            task=task,
            scores=tuple(_arm_rows(facts, site, task)),
            pictures=tuple(figures.panel_rows(facts, site, task=task, limit=limit)),
            note=sentences.pictures(facts, site, task),
        )
        for task in facts.tasks(site)
    ]


def _arm_rows(facts: Facts, site: str, task: str) -> list[ArmRow]:
    columns = [
        cells([arm.spread(site, task, metric.key) for arm in facts.arms], metric)
        for metric in facts.metrics
    ]
    if not columns:  # no scores yet
        return []
    rows = zip(facts.arms, zip(*columns, strict=True), strict=True)
    return [ArmRow(arm, row, arm.num_patients(site, task)) for arm, row in rows]


@dataclass(frozen=True)
class View:
    """Who sees what over one topology, and the arms that were trained over it."""

    arms: tuple[str, ...]
    kind: str
    sees: Mapping[str, str]


def views(facts: Facts) -> list[View]:
    """List what the parties of each topology see; arms that saw alike share a view."""
    groups: dict[tuple[str, tuple[tuple[str, str], ...]], list[str]] = {}
    for arm in facts.arms:
        if arm.topology and arm.topology.bytes_per_round:
            key = arm.topology.kind, tuple(arm.topology.sees.items())
            groups.setdefault(key, []).append(arm.title)
    return [View(tuple(arms), kind, dict(sees)) for (kind, sees), arms in groups.items()]


@dataclass(frozen=True)
class Overview:
    """The main metric of every arm at every site, as a table and along an axis."""

    metric: Metric
    axis: Axis
    rows: tuple[tuple[str, tuple[Cell, ...], int], ...]  # label, a cell an arm, test patients


def overview(facts: Facts) -> Overview | None:
    """Put sites beside arms in the main metric; nothing before there are scores."""
    if not facts.metrics:
        return None
    metric = facts.metrics[0]
    table = {s: [arm.site_spread(s, metric.key) for arm in facts.arms] for s in facts.sites}
    axis = figures.axis(spread.mean for row in table.values() for spread in row if spread)
    total = [arm.overall(metric.key) for arm in facts.arms]
    everyone = [Spread(s.mean, None, s.n) if s else None for s in total]
    rows = [(site, row, max((s.n for s in row if s), default=0)) for site, row in table.items()]
    rows.append(("All hospitals", everyone, facts.num_test_patients))
    return Overview(metric, axis, tuple((a, cells(r, metric, axis), n) for a, r, n in rows))


def cells(
    spreads: Sequence[Spread | None], metric: Metric, axis: Axis | None = None
) -> tuple[Cell, ...]:
    """Print a row or column of scores; all that print as the best are marked."""
    printed = [round(spread.mean, 2) for spread in spreads if spread]
    best = (max if metric.higher_is_better else min)(printed, default=None)
    return tuple(_cell(spread, best, axis) for spread in spreads)


def _cell(spread: Spread | None, best: float | None, axis: Axis | None) -> Cell:
    if spread is None:
        return Cell("not scored", "", best=False)
    sd = "" if spread.sd is None else f"{spread.sd:.2f}"
    place = None if axis is None else round(100 * axis.share(spread.mean), 2)
    return Cell(f"{spread.mean:.2f}", sd, best=round(spread.mean, 2) == best, place=place)
