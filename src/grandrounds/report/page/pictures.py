"""The pictures of the median and the worst test patient are chosen here by rule, for all arms."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from grandrounds.report.analysis.arm import Arm
from grandrounds.report.analysis.facts import Facts
from grandrounds.report.analysis.folder import KeptPanel, StoredPanel
from grandrounds.report.analysis.metrics import Metric
from grandrounds.report.analysis.run import Run
from grandrounds.report.page.style import error_map, grey
from grandrounds.report.prose.vocabulary import wording


@dataclass(frozen=True)
class PanelChoice:
    """A patient of one site and task, its role, and each arm's picture of it."""

    role: str
    site: str
    task: str
    panels: tuple[tuple[Arm, Run, StoredPanel], ...]


@dataclass(frozen=True)
class Shown:
    """One arm's pictures in a panel, and the patient's mean score."""

    arm: Arm
    value: float | None
    made: str
    error: str


@dataclass(frozen=True)
class PanelRow:
    """Source and target of one patient, and the arms' predictions."""

    role: str
    source: str
    target: str
    shape: str  # width / height, as CSS writes it
    shown: tuple[Shown, ...]
    folded: tuple[Shown, ...]  # without error maps


def choices(facts: Facts, *, include_images: bool = False) -> list[PanelChoice]:
    """Choose the patients of every site and task, and read their pictures. Raises `BadFolder`.

    Pictures of real patients are left out unless `include_images` asks for them.
    """
    judge = _judge(facts)
    if judge is None:
        return []
    run = judge[1]
    return [
        PanelChoice(
            role, site, task, tuple(_panels(facts, run.seed, site, task=task, patient=patient))
        )
        for site in facts.sites
        if include_images or site in facts.simulated
        for task in facts.tasks(site)
        for role, patient in _chosen(run, site, task=task, metric=facts.main_metric).items()
    ]


def _judge(facts: Facts) -> tuple[Arm, Run] | None:
    """Return the first arm with pictures, whose scores choose patients, and its first such run."""
    found = ((arm, run) for arm in facts.arms for run in arm.runs if run.panels)
    return next(found, None)


def _chosen(run: Run, site: str, *, task: str, metric: Metric | None) -> dict[str, str]:
    """Map roles, such as the median or worst patient, to the patients that have them."""
    kept = [p.patient for p in run.panels if (p.site, p.task) == (site, task)]
    scores = run.scores.get((site, task, metric.key)) if metric else None
    found = sorted({patient for patient in kept if scores and patient in scores})
    if metric is None or not scores or not found:
        return {"Test patient": min(kept)} if kept else {}
    sign = 1 if metric.higher_is_better else -1
    by_worth = sorted(found, key=lambda patient: sign * scores[patient])
    if len(by_worth) == 1:
        return {"The only patient whose pictures were kept": by_worth[0]}
    median = by_worth[(len(by_worth) - 1) // 2]
    if median == by_worth[0]:
        return {"Worst of two patients": median}
    return {"Median patient": median, "Worst patient": by_worth[0]}


def _panels(
    facts: Facts, seed: int, site: str, *, task: str, patient: str
) -> Iterable[tuple[Arm, Run, StoredPanel]]:
    """Read each arm's picture of a patient with this seed."""
    for arm in facts.arms:
        for run in arm.runs:
            kept = _find(run.panels, site, task=task, patient=patient)
            if run.seed == seed and kept:
                yield arm, run, kept.load()


def _find(panels: Sequence[KeptPanel], site: str, *, task: str, patient: str) -> KeptPanel | None:
    sought = (site, task, patient)
    return next((p for p in panels if (p.site, p.task, p.patient) == sought), None)


def panels_of(chosen: Iterable[PanelChoice]) -> list[StoredPanel]:
    """Return all pictures, for example to find one scale for their errors."""
    return [panel for choice in chosen for _, _, panel in choice.panels]


def panel_rows(
    facts: Facts, chosen: Sequence[PanelChoice], limit: float
) -> Mapping[tuple[str, str], list[PanelRow]]:
    """Return the encoded pictures of the chosen patients, by (site, task)."""
    rows: dict[tuple[str, str], list[PanelRow]] = {}
    for choice in chosen:
        rows.setdefault((choice.site, choice.task), []).append(_row(facts, choice, limit))
    return rows


def _row(facts: Facts, choice: PanelChoice, limit: float) -> PanelRow:
    first = choice.panels[0][2]
    metric = facts.main_metric.key if facts.main_metric else ""
    folded = {arm.name for arm in facts.others}
    shown = [_shown(*one, metric, limit) for one in choice.panels if one[0].name not in folded]
    others = [_shown(*one, metric, None) for one in choice.panels if one[0].name in folded]
    height, width = first.target.shape
    return PanelRow(
        choice.role,
        grey(first.source),
        grey(first.target),
        f"{width} / {height}",
        tuple(shown),
        tuple(others),
    )


def _shown(arm: Arm, run: Run, panel: StoredPanel, metric: str, limit: float | None) -> Shown:
    patients = run.scores.get((panel.site, panel.task, metric), {})
    graded = wording(arm.study.task).graded
    error = "" if limit is None else error_map(panel, limit, graded=graded)
    return Shown(arm, patients.get(panel.patient), grey(panel.prediction), error)


def rule(facts: Facts) -> str:
    """Write how the patients in the pictures were chosen; empty where nobody has pictures."""
    judge = _judge(facts)
    if judge is None:
        return ""
    label = facts.main_metric.label if facts.main_metric else "score"
    seed = f", seed {judge[1].seed}" if len(facts.seeds) > 1 else ""
    return (
        "the median and the worst of the patients whose pictures were kept, by "
        f"{judge[0].title}'s mean {label}{seed}, and the middle image of each; the figure below a "
        f"picture is that patient's mean {label}"
    )
