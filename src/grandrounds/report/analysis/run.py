"""The numbers of one run are computed here: work, ending, curves, and test scores by patient."""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import TypeAlias, TypeVar

from grandrounds.core.errors import BadFolder
from grandrounds.core.events import (
    BudgetReached,
    Event,
    Failed,
    Interrupted,
    PolicySet,
    RoundFinished,
    RoundLost,
    RunFinished,
    RunResumed,
    RunStarted,
    SiteJoined,
    SiteMissed,
    SiteMonitored,
    SiteReady,
    SiteTrained,
    SiteTuned,
    SiteValidated,
    StoppedEarly,
    TopologySet,
    UpdatesCompared,
    UpdatesJudged,
    WorkSet,
)
from grandrounds.core.journal import Traffic, absences, bytes_by_site
from grandrounds.core.run_folder import RunFolder
from grandrounds.report.analysis.auc import Discrimination, discriminations
from grandrounds.report.analysis.depth import Depth, depth_of
from grandrounds.report.analysis.empty import EmptyCases, empty_cases
from grandrounds.report.analysis.folder import CaseRow, Derivation, KeptPanel, RunRecord, StudyFile
from grandrounds.report.analysis.metrics import METRICS, is_known


@dataclass(frozen=True)
class ForgettingCycle:
    """One monitored cycle: `scores` maps each turn, in order, to each site's score.

    Higher is better; a site without validation cases has no score.
    """

    round: int
    scores: Mapping[str, Mapping[str, float]]

    @property
    def turns(self) -> tuple[str, ...]:
        """Return the sites in the order of their turns."""
        return tuple(self.scores)

    @property
    def lost(self) -> Mapping[str, float]:
        """Return each site's loss between its own turn and the end; negative where it gained.

        The last site, whose turn is the end, is left out.
        """
        end = self.scores[self.turns[-1]]
        own = {name: self.scores[name] for name in self.turns[:-1]}
        return {name: own[name][name] - end[name] for name in own if name in end}

    @property
    def mean_lost(self) -> float | None:
        """Return the mean loss over sites; None where no site has one."""
        return fmean(self.lost.values()) if self.lost else None

    def shade(self, turn: str, site: str) -> float:
        """Return where a score lies between the site's worst (0) and best (1) in this cycle."""
        column = [row[site] for row in self.scores.values()]
        low, high = min(column), max(column)
        return (self.scores[turn][site] - low) / (high - low) if high > low else 0.0


def cycles_of(
    monitored: Iterable[SiteMonitored], finished: Iterable[int]
) -> tuple[ForgettingCycle, ...]:
    """Return every monitored cycle that was finished, oldest first."""
    found: dict[int, dict[str, dict[str, float]]] = {number: {} for number in finished}
    for event in monitored:
        if event.round in found:
            row = found[event.round].setdefault(event.after, {})
            row |= {event.site: event.score} if event.cases else {}
    return tuple(
        ForgettingCycle(number, scores) for number, scores in sorted(found.items()) if scores
    )


@dataclass(frozen=True)
class SiteWork:
    """One site's training and traffic in one run, over all rounds from the one it `joined` in.

    `bytes_full` are those of its updates before guards touched them, 0 where it has none.
    """

    site: str
    rounds: tuple[int, ...]
    steps: int
    examples: int
    seconds: float
    bytes_up: int
    bytes_down: int
    joined: int = 1
    bytes_full: int = 0


@dataclass(frozen=True)
class Absence:
    """Why a site did not answer, and in which rounds."""

    site: str
    stage: str
    reason: str
    rounds: tuple[int, ...]


def work_of(events: Sequence[Event], sites: Sequence[str]) -> tuple[SiteWork, ...]:
    """Return each site's training and traffic, added up over the rounds."""
    trained = {(e.round, e.site): e for e in events if isinstance(e, SiteTrained)}
    absent, rounds = absences(events), {round for round, _ in trained}
    parts = {
        name: [e for place, e in trained.items() if e.site == name and place not in absent]
        for name in sites
    }
    traffic = {
        name: [
            t
            for (round, own), t in bytes_by_site(events).items()
            if own == name and round in rounds
        ]
        for name in sites
    }
    joined = {event.site: event.round for event in events if isinstance(event, SiteJoined)}
    return tuple(
        _site_work(name, parts[name], traffic[name], joined.get(name, 1)) for name in sites
    )


def _site_work(
    site: str, parts: Sequence[SiteTrained], traffic: Sequence[Traffic], joined: int
) -> SiteWork:
    return SiteWork(
        site=site,
        rounds=tuple(sorted(part.round for part in parts)),
        steps=sum(part.steps for part in parts),
        examples=max((part.examples for part in parts), default=0),
        seconds=sum(part.seconds for part in parts),
        bytes_up=sum(up for up, _ in traffic),
        bytes_down=sum(down for _, down in traffic),
        joined=joined,
        bytes_full=sum(part.bytes_full for part in parts),
    )


def absences_of(events: Iterable[Event]) -> tuple[Absence, ...]:
    """Return the sites that did not answer, and why; equal failures in several rounds are one."""
    rounds: dict[tuple[str, str, str], list[int]] = defaultdict(list)
    for event in events:
        if isinstance(event, SiteMissed):
            said = f"{event.error}: {event.message}".rstrip(".")
            reason = f"{said}. {event.hint}".rstrip()
            rounds[event.site, event.stage, reason].append(event.round)
    return tuple(
        Absence(*key, rounds=tuple(sorted(set(numbers)))) for key, numbers in rounds.items()
    )


Curve: TypeAlias = tuple[tuple[int, float], ...]  # (round, score)
PatientScores: TypeAlias = Mapping[str, float]  # patient -> mean over that patient's slices
Cell: TypeAlias = tuple[str, str, str]  # (site, task, metric)
RunScores: TypeAlias = Mapping[Cell, PatientScores]
Ending: TypeAlias = StoppedEarly | Interrupted | Failed | RunFinished
_Kind = TypeVar("_Kind", bound=Event)


@dataclass(frozen=True)
class Run:
    """One run of an arm, with one seed.

    `unseen` are scores at sites that the model was trained without; `crossed` maps a model's site
    to the model's scores at every site. `epsilons` are those of the run by site and round; `budget`
    is there where a site's privacy budget ended the training.
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
    work: tuple[SiteWork, ...]
    absences: tuple[Absence, ...]
    lost: tuple[RoundLost, ...]  # saved rounds that a resumed run could not use
    cycles: tuple[ForgettingCycle, ...]
    tuned: tuple[SiteTuned, ...]
    compared: tuple[UpdatesCompared, ...]
    judged: tuple[UpdatesJudged, ...]  # rounds with updates that were unusual, or left out
    depth: Depth
    scores: RunScores
    discrimination: Mapping[tuple[str, str], Discrimination]  # by (site, task)
    empty: EmptyCases | None
    scored_rounds: tuple[int, ...]
    panels: tuple[KeptPanel, ...]
    epsilons: Mapping[str, Curve]
    budget: BudgetReached | None
    unseen: RunScores
    crossed: Mapping[str, RunScores]
    derived: Derivation | None

    @property
    def seed(self) -> int:
        return self.started.seed

    @property
    def rounds(self) -> tuple[int, ...]:
        """Return the finished training rounds; round 0 is the model before any training."""
        return tuple(event.round for event in self.finished_rounds if event.round > 0)

    @property
    def best_round(self) -> int:
        """Return the round with the best weighted validation score."""
        return self.finished_rounds[-1].best_round if self.finished_rounds else 0

    @property
    def weighted(self) -> Curve:
        """Return the weighted validation score per round."""
        return tuple((e.round, e.score) for e in self.finished_rounds if e.score is not None)

    @property
    def num_bytes(self) -> int:
        """Count the bytes that the sites sent and received."""
        return sum(work.bytes_up + work.bytes_down for work in self.work)

    @property
    def seconds(self) -> float:
        """Return the sites' training time, added up; `depth.wall_clock` is shorter."""
        return sum(work.seconds for work in self.work)

    @property
    def flops(self) -> int | None:
        """Estimate the operations of all training steps; None where a run reported no workload."""
        if self.workload is None:
            return None
        return self.workload.flops_per_step * sum(work.steps for work in self.work)


def run_of(folder: RunRecord) -> Run:
    """Compute the numbers of one run. Raises `BadFolder` for a score of an unknown site."""
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
        lost=tuple(dict.fromkeys(_of(events, RoundLost))),
        cycles=cycles_of(_of(events, SiteMonitored), [number for number in rounds if number]),
        depth=depth_of(events, folder.started.sites, planned=folder.started.rounds),
        tuned=tuple({event.site: event for event in _of(events, SiteTuned)}.values()),
        compared=tuple(e for e in _of(events, UpdatesCompared) if e.round in rounds),
        judged=tuple(e for e in _of(events, UpdatesJudged) if e.round in rounds),
        scores=_patient_means(folder, folder.cases, folder.study.sites, RunFolder.scores),
        discrimination=discriminations(folder.cases, folder.study),
        empty=empty_cases(folder.cases),
        scored_rounds=tuple(sorted({case.round for case in folder.cases})),
        panels=folder.panels,
        epsilons=_epsilons(_of(events, SiteTrained)),
        budget=next(reversed(_of(events, BudgetReached)), None),
        unseen=_patient_means(folder, folder.unseen, everyone, RunFolder.unseen),
        crossed={
            model: _patient_means(folder, cases, everyone, RunFolder.matrix)
            for model, cases in folder.crossed.items()
        },
        derived=folder.derived,
    )


def _of(events: Iterable[Event], kind: type[_Kind]) -> list[_Kind]:
    return [event for event in events if isinstance(event, kind)]


def _ending(events: Sequence[Event]) -> Ending | None:
    """Return the last event that ended the run; a resume cancels those before it."""
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


def _epsilons(trained: Iterable[SiteTrained]) -> dict[str, Curve]:
    points: dict[str, dict[int, float]] = defaultdict(dict)
    for event in trained:
        if event.epsilon is not None:
            points[event.site][event.round] = event.epsilon
    return {site: tuple(sorted(found.items())) for site, found in points.items()}


def _patient_means(
    folder: RunRecord, cases: Iterable[CaseRow], sites: Sequence[str], table: str
) -> dict[Cell, PatientScores]:
    values: dict[Cell, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for case in cases:
        known = folder.study.own_task or is_known(case.metric)
        if not known or case.site not in sites:
            raise BadFolder(
                f"{table}: metric '{case.metric}' at site '{case.site}' is unknown; "
                f"metrics: {', '.join(METRICS)}; sites of the study: {', '.join(sites)}"
            )
        values[case.site, case.task, case.metric][case.patient].append(case.value)
    return {cell: {p: fmean(v) for p, v in found.items()} for cell, found in values.items()}
