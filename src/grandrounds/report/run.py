"""One run as numbers: what was trained, how far it came, and each patient's mean score."""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
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
    WorkSet,
)
from grandrounds.report.discrimination import Discrimination, discriminations
from grandrounds.report.folder import CaseRow, RunFolder, StudyFile
from grandrounds.report.forgetting import Cycle, cycles_of
from grandrounds.report.metrics import METRICS, is_known
from grandrounds.report.panels import KeptPanel
from grandrounds.report.work import Absence, Work, absences_of, work_of

Curve: TypeAlias = tuple[tuple[int, float], ...]  # (round, score)
Patients: TypeAlias = Mapping[str, float]  # patient -> mean over that patient's slices
Cell: TypeAlias = tuple[str, str, str]  # (site, task, metric)
Scores: TypeAlias = Mapping[Cell, Patients]
Ending: TypeAlias = StoppedEarly | Interrupted | Failed | RunFinished
Kind = TypeVar("Kind", bound=Event)


@dataclass(frozen=True)
class Run:
    """One run of an arm, with one seed.

    `unseen` are scores at sites that the model was trained without; `crossed` maps whose model it
    is to its scores at every site.
    """

    study: StudyFile
    started: RunStarted
    began: float  # unix seconds
    ready: Mapping[str, SiteReady]
    policy: PolicySet | None
    topology: TopologySet | None
    workload: WorkSet | None
    finished_rounds: tuple[RoundFinished, ...]
    ending: Ending | None
    curves: Mapping[str, Curve]
    work: tuple[Work, ...]
    absences: tuple[Absence, ...]
    cycles: tuple[Cycle, ...]
    tuned: tuple[SiteTuned, ...]
    scores: Scores
    discrimination: Mapping[tuple[str, str], Discrimination]  # by (site, task)
    scored_rounds: tuple[int, ...]
    panels: tuple[KeptPanel, ...]
    unseen: Scores
    crossed: Mapping[str, Scores]

    @property
    def seed(self) -> int:
        """Give the seed."""
        return self.started.seed

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
    def num_bytes(self) -> int:
        """Count the bytes that the sites sent and received."""
        return sum(work.bytes_up + work.bytes_down for work in self.work)

    @property
    def seconds(self) -> float:
        """Add up the sites' training time."""
        return sum(work.seconds for work in self.work)

    @property
    def flops(self) -> int | None:
        """Count about how many operations all training steps took; none where a run told none."""
        if self.workload is None:
            return None
        return self.workload.flops_per_step * sum(work.steps for work in self.work)


def run_of(folder: RunFolder) -> Run:
    """Compute the facts of one run. Raises `BadFolder` where a score is of no known site."""
    events = [event for _, event in folder.events]
    rounds = {event.round: event for event in _of(events, RoundFinished)}
    everyone = (*folder.study.sites, *folder.study.held_out)
    return Run(
        study=folder.study,
        started=folder.started,
        began=folder.events[0][0],
        ready={event.site: event for event in _of(events, SiteReady)},
        policy=next(reversed(_of(events, PolicySet)), None),
        topology=next(reversed(_of(events, TopologySet)), None),
        workload=next(reversed(_of(events, WorkSet)), None),
        finished_rounds=tuple(rounds[number] for number in sorted(rounds)),
        ending=_ending(events),
        curves=_curves(_of(events, SiteValidated)),
        work=work_of(events, folder.started.sites),
        absences=absences_of(events),
        cycles=cycles_of(_of(events, SiteMonitored), [number for number in rounds if number]),
        tuned=tuple({event.site: event for event in _of(events, SiteTuned)}.values()),
        scores=_patient_means(folder.cases, folder.study.sites, "scores.csv"),
        discrimination=discriminations(folder.cases, folder.study),
        scored_rounds=tuple(sorted({case.round for case in folder.cases})),
        panels=folder.panels,
        unseen=_patient_means(folder.unseen, everyone, "unseen.csv"),
        crossed={
            model: _patient_means(cases, everyone, "matrix.csv")
            for model, cases in folder.crossed.items()
        },
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


def _patient_means(
    cases: Iterable[CaseRow], sites: Sequence[str], table: str
) -> dict[Cell, Patients]:
    values: dict[Cell, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for case in cases:
        if not is_known(case.metric) or case.site not in sites:
            raise BadFolder(
                f"{table}: metric '{case.metric}' at site '{case.site}' is unknown; "
                f"metrics: {', '.join(METRICS)}; sites of the study: {', '.join(sites)}"
            )
        values[case.site, case.task, case.metric][case.patient].append(case.value)
    return {cell: {p: fmean(v) for p, v in found.items()} for cell, found in values.items()}
