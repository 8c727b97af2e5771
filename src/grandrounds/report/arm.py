"""One run as numbers: averages within a patient first, then over patients, tasks and sites."""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev
from typing import TypeAlias, TypeVar

from grandrounds.errors import BadFolder
from grandrounds.events import (
    Event,
    Failed,
    Interrupted,
    PolicySet,
    RoundFinished,
    RunFinished,
    RunResumed,
    RunStarted,
    SiteMonitored,
    SiteReady,
    SiteTuned,
    SiteValidated,
    StoppedEarly,
    TopologySet,
)
from grandrounds.report.discrimination import Discrimination, discriminations
from grandrounds.report.folder import ArmEntry, CaseRow, Panel, RunFolder, StudyFile
from grandrounds.report.forgetting import Cycle, cycles_of
from grandrounds.report.metrics import METRICS, is_known
from grandrounds.report.work import Absence, Work, absences_of, work_of

FEW_STEPS = 320  # up to here, training alone usually wins: an average slows every step
Curve: TypeAlias = tuple[tuple[int, float], ...]  # (round, score)
Patients: TypeAlias = Mapping[str, float]  # patient -> mean over that patient's slices
Cell: TypeAlias = tuple[str, str, str]  # (site, task, metric)
Ending: TypeAlias = StoppedEarly | Interrupted | Failed | RunFinished
Kind = TypeVar("Kind", bound=Event)


@dataclass(frozen=True)
class Spread:
    """A mean, the standard deviation (none for a single value), and the number of values."""

    mean: float
    sd: float | None
    n: int


@dataclass(frozen=True)
class Arm:
    """One run of the report: what was trained, how far it came, how well it did."""

    entry: ArmEntry
    study: StudyFile
    started: RunStarted
    began: float  # unix seconds
    ready: Mapping[str, SiteReady]
    policy: PolicySet | None
    topology: TopologySet | None
    finished_rounds: tuple[RoundFinished, ...]
    ending: Ending | None
    curves: Mapping[str, Curve]
    work: tuple[Work, ...]
    absences: tuple[Absence, ...]
    cycles: tuple[Cycle, ...]
    tuned: tuple[SiteTuned, ...]
    scores: Mapping[Cell, Patients]
    discrimination: Mapping[tuple[str, str], Discrimination]  # by (site, task)
    seeds: tuple[int, ...]
    scored_rounds: tuple[int, ...]
    panels: tuple[Panel, ...]

    @property
    def title(self) -> str:
        """Name the arm for readers."""
        return self.entry.title

    @property
    def local(self) -> bool:
        """Tell whether every site trained alone."""
        return self.study.method == "local"

    @property
    def pooled(self) -> bool:
        """Tell whether all sites' data were in one place."""
        return self.study.method == "central"

    @property
    def rounds(self) -> tuple[int, ...]:
        """List the training rounds that stand; round 0 is the model before any training."""
        return tuple(event.round for event in self.finished_rounds if event.round > 0)

    @property
    def best_round(self) -> int:
        """Give the round with the best weighted validation score."""
        return self.finished_rounds[-1].best_round if self.finished_rounds else 0

    @property
    def weighted(self) -> Curve:
        """Give the weighted validation score per round."""
        return tuple((e.round, e.score) for e in self.finished_rounds if e.score is not None)

    @property
    def metrics(self) -> tuple[str, ...]:
        """List the metrics that were scored, the main one first."""
        return tuple(key for key in METRICS if any(key == metric for *_, metric in self.scores))

    def scored_tasks(self, site: str, metric: str) -> tuple[str, ...]:
        """List the tasks of a site that have test scores."""
        return tuple(t for at, t, key in self.scores if (at, key) == (site, metric))

    def spread(self, site: str, task: str, metric: str) -> Spread | None:
        """Give mean and spread over the patients of one site and task; nothing where unscored."""
        patients = self.scores.get((site, task, metric))
        return _spread(list(patients.values())) if patients else None

    def num_patients(self, site: str, task: str) -> int:
        """Count the patients of one site and task that were scored."""
        return max(
            (len(v) for (s, t, _), v in self.scores.items() if (s, t) == (site, task)), default=0
        )

    def site_patients(self, site: str, metric: str) -> Patients:
        """Average each patient of a site over the tasks."""
        values: dict[str, list[float]] = defaultdict(list)
        for task in self.scored_tasks(site, metric):
            for patient, value in self.scores[site, task, metric].items():
                values[patient].append(value)
        return {patient: fmean(found) for patient, found in values.items()}

    def site_spread(self, site: str, metric: str) -> Spread | None:
        """Give a site's mean over tasks, with the spread and number of its patients."""
        spreads = [self.spread(site, task, metric) for task in self.scored_tasks(site, metric)]
        means = [spread.mean for spread in spreads if spread]
        if not means:
            return None
        over_patients = _spread(list(self.site_patients(site, metric).values()))
        return Spread(fmean(means), over_patients.sd, over_patients.n)

    def overall(self, metric: str) -> Spread | None:
        """Give the mean over tasks, then sites, and the spread of the sites' means.

        Nothing unless every site of the study is scored; `n` counts sites.
        """
        spreads = [self.site_spread(site, metric) for site in self.study.sites]
        means = [spread.mean for spread in spreads if spread]
        return _spread(means) if len(means) == len(self.study.sites) else None

    def auc(self, site: str) -> float | None:
        """Average a site's AUC over the tasks for which it is defined; nothing where none is."""
        found = [d.auc for (at, _), d in self.discrimination.items() if at == site]
        defined = [value for value in found if value is not None]
        return fmean(defined) if defined else None

    def few_steps(self) -> tuple[Work, ...]:
        """List the sites' work that a federation can hardly repay, for want of steps."""
        if self.local or self.pooled:
            return ()
        return tuple(w for w in self.work if 0 < w.steps <= FEW_STEPS)


def arm_of(run: RunFolder) -> Arm:
    """Compute the facts of one run. Raises `BadFolder` where a score is of no known site."""
    events = [event for _, event in run.events]
    started = _of(events, RunStarted)[-1]
    rounds = {event.round: event for event in _of(events, RoundFinished)}
    return Arm(
        entry=run.entry,
        study=run.study,
        started=started,
        began=run.events[0][0],
        ready={event.site: event for event in _of(events, SiteReady)},
        policy=next(reversed(_of(events, PolicySet)), None),
        topology=next(reversed(_of(events, TopologySet)), None),
        finished_rounds=tuple(rounds[number] for number in sorted(rounds)),
        ending=_ending(events),
        curves=_curves(_of(events, SiteValidated)),
        work=work_of(events, started.sites),
        absences=absences_of(events),
        cycles=cycles_of(_of(events, SiteMonitored), [number for number in rounds if number]),
        tuned=tuple({event.site: event for event in _of(events, SiteTuned)}.values()),
        scores=_patient_means(run.cases, run.study),
        discrimination=discriminations(run.cases, run.study),
        seeds=tuple(sorted({case.seed for case in run.cases})),
        scored_rounds=tuple(sorted({case.round for case in run.cases})),
        panels=run.panels,
    )


def _of(events: Iterable[Event], kind: type[Kind]) -> list[Kind]:
    return [event for event in events if isinstance(event, kind)]


def _ending(events: Sequence[Event]) -> Ending | None:
    """Give the last word on how the run ended; a resume takes back what was said before it."""
    ending: Ending | None = None
    for event in events:
        match event:
            case RunResumed():
                ending = None
            case StoppedEarly() | Interrupted() | Failed() | RunFinished():
                ending = event
            case _:
                pass
    return ending


def _curves(validated: Iterable[SiteValidated]) -> dict[str, Curve]:
    points: dict[str, dict[int, float]] = defaultdict(dict)
    for event in validated:
        points[event.site][event.round] = event.score
    return {site: tuple(sorted(found.items())) for site, found in points.items()}


def _patient_means(cases: Iterable[CaseRow], study: StudyFile) -> dict[Cell, Patients]:
    values: dict[Cell, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for case in cases:
        if not is_known(case.metric) or case.site not in study.sites:
            raise BadFolder(
                f"scores.csv: metric '{case.metric}' at site '{case.site}' is unknown; "
                f"metrics: {', '.join(METRICS)}; sites of the study: {', '.join(study.sites)}"
            )
        values[case.site, case.task, case.metric][case.patient].append(case.value)
    return {cell: {p: fmean(v) for p, v in found.items()} for cell, found in values.items()}


def _spread(values: Sequence[float]) -> Spread:
    return Spread(fmean(values), stdev(values) if len(values) > 1 else None, len(values))
