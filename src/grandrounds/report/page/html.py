"""The report is written here as one HTML file that opens offline and loads nothing."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from grandrounds.core.files import write_text
from grandrounds.core.run_folder import ComparisonFolder, ResultFolder
from grandrounds.report.analysis import cross_site
from grandrounds.report.analysis.auc import MEANING
from grandrounds.report.analysis.cosines import compared_updates
from grandrounds.report.analysis.facts import MANY, Facts, read_facts
from grandrounds.report.analysis.statistics import FEWEST, LEVEL
from grandrounds.report.page import charts, style, tables
from grandrounds.report.page.audit import VERDICT_WORDS, Annex, annexes
from grandrounds.report.page.pictures import PanelRow, choices, panel_rows, panels_of, rule
from grandrounds.report.page.tables import ArmRow
from grandrounds.report.prose import (
    cosines,
    generalisation,
    privacy,
    sentences,
    summary,
    vocabulary,
)
from grandrounds.report.prose.sentences import no_pictures
from grandrounds.report.prose.vocabulary import wording


@dataclass(frozen=True)
class Block:
    """The scores and pictures of one site and task on the page; `note` says why there are none."""

    task: str
    scores: tuple[ArmRow, ...]
    pictures: tuple[PanelRow, ...]
    note: str


def write_report(folder: Path, *, include_images: bool = False) -> Path:
    """Write `report.html` into a run or comparison folder, whole or not at all; return its path.

    `include_images` shows the pictures that real sites saved, too. Raises `BadFolder` and
    `DiskFailed`.
    """
    comparison = ComparisonFolder(folder)
    runs = [run.path for run in comparison.runs()] if comparison.exists else [folder]
    page = render_page(
        read_facts(folder), include_images=include_images, audits=annexes(folder, runs)
    )
    path = ResultFolder(folder).report
    write_text(path, page, refusal="{path}: the report cannot be written: {reason}")
    return path


def render_page(facts: Facts, *, include_images: bool = False, audits: Sequence[Annex] = ()) -> str:
    """Return the page of these facts, with audits as its annex.

    Raises `BadFolder` where a picture cannot be read.
    """
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    metric, chosen = facts.main_metric, choices(facts, include_images=include_images)
    limit = style.error_limit(panels_of(chosen))
    return environment.get_template("page.html.j2").render(
        facts=facts,
        say=sentences,
        summary=summary,
        words=vocabulary,
        styles=style.styles(facts),
        charts=charts.charts(facts),
        folded_charts=charts.folded_charts(facts),
        forgetting=charts.forgetting_chart(facts),
        views=views(facts),
        wording=wording(facts.arms[0].study.task),
        aucs=tables.aucs(facts),
        level=LEVEL,
        fewest=FEWEST,
        many=len(facts.arms) > MANY,
        auc_meaning=MEANING,
        pieces="Items" if facts.arms[0].study.own_task else "Images",
        imaging=any(any(ready.slices.values()) for ready in facts.ready.values()),
        ramp=style.RAMP,
        tint=style.tint,
        limit=limit,
        pictured=rule(facts) if chosen else "",
        metric=metric,
        site_gains=tables.site_gains(facts),
        arm_gains=tables.arm_gains(facts),
        standings=tables.standings(facts, metric) if metric else [],
        overview=tables.overview(facts, metric) if metric else [],
        costs=tables.costs(facts),
        privacy=privacy,
        pulls=compared_updates(facts),
        angles=cosines,
        pull=style.pull,
        full=style.FULL_PULL,
        thinned=charts.thinned,
        generalisation=generalisation,
        cross_site=cross_site,
        crossings=cross_site.cross_site_matrices(facts),
        left_out=cross_site.left_out(facts, facts.notable),
        folded_left_out=cross_site.left_out(facts, facts.others),
        blocks=blocks(facts, panel_rows(facts, chosen, limit)),
        annexes=audits,
        audit_words=VERDICT_WORDS,
    )


def blocks(
    facts: Facts, pictures: Mapping[tuple[str, str], list[PanelRow]]
) -> dict[str, list[Block]]:
    """Return the scores and pictures of every site, task by task."""
    return {
        site: [_block(facts, pictures, site, t) for t in facts.tasks(site)] for site in facts.sites
    }


def _block(
    facts: Facts, pictures: Mapping[tuple[str, str], list[PanelRow]], site: str, task: str
) -> Block:
    rows = pictures.get((site, task), [])
    return Block(
        task, tuple(tables.task_rows(facts, site, task)), tuple(rows), no_pictures(facts, site)
    )


@dataclass(frozen=True)
class View:
    """What each party sees over one topology, and the arms that were trained over it."""

    arms: tuple[str, ...]
    kind: str
    sees: Mapping[str, str]


def views(facts: Facts) -> list[View]:
    """Return what the parties of each topology see; arms with the same view share one."""
    groups: dict[tuple[str, tuple[tuple[str, str], ...]], list[str]] = {}
    for arm in facts.arms:
        topology = arm.runs[0].topology
        if topology and topology.bytes_per_round:
            key = topology.kind, tuple(topology.sees.items())
            groups.setdefault(key, []).append(arm.title)
    return [View(tuple(arms), kind, dict(sees)) for (kind, sees), arms in groups.items()]
