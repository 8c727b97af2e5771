"""A run: build everything from a study, then go round after round, saved at every step."""

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from hashlib import sha256
from pathlib import Path

import torch

from grandrounds import __version__
from grandrounds.build import Federation, build_federation, num_processes, spread_out
from grandrounds.checkpoints import State, load_state, newest_complete_round, save_state
from grandrounds.ending import Ending, evaluated
from grandrounds.errors import FailureCard, RunFailed, SiteFailed
from grandrounds.estimate import check_memory
from grandrounds.events import (
    Event,
    Failed,
    Interrupted,
    Listener,
    RoundFinished,
    RunFinished,
    RunResumed,
    RunStarted,
    SiteMissed,
    StoppedEarly,
)
from grandrounds.heard import event_of
from grandrounds.journal import Journal, read_journal, surviving
from grandrounds.machine import Machine, machine_for, peak_memory, repeatable
from grandrounds.messages import Describe, Reply, Request
from grandrounds.opening import open_sites
from grandrounds.run_folder import claimed
from grandrounds.site_file import SiteFile
from grandrounds.study import Study
from grandrounds.study_file import fingerprint
from grandrounds.tables import Told, write_digests, write_forgetting, write_rounds, write_scores
from grandrounds.topologies.topology import Sites


def run(
    study: Study,
    folder: Path,
    *,
    files: Sequence[SiteFile] = (),
    resume: bool = False,
    listeners: Sequence[Listener] = (),
    workers: int = 1,
) -> State:
    """Run a study to its end in `folder`, and give the last round's state.

    With several `workers`, as many processes share the sites; the numbers are the same as long as
    training.threads says how many threads each one has.
    With `resume` the run goes on from the newest round that the coordinator and all sites hold, to
    the same bits as if it had never stopped. Raises `BadInput` before anything trains, `RunFailed`
    afterwards; both leave everything that was saved.
    """
    processes = num_processes(study, workers)
    check_memory(study, processes=processes)
    opened = open_sites(study, files)
    machine = machine_for(study.training, processes=processes)
    with claimed(folder, study, resume=resume), repeatable(machine):
        teller = Teller((Journal(folder / "journal.jsonl"), *listeners), study)
        built = build_federation(study, opened, folder, machine, teller)
        with spread_out(built, study, files, folder, teller, processes=processes) as federation:
            return followed(Course(study, folder, federation, machine, teller, resume))


def followed(course: "Course") -> State:
    """Follow a course to its last state; whatever comes, it is told, and tables are written."""
    try:
        return course.follow()
    except RunFailed as error:
        course.teller.tell(_failed(error, course.reached))
        raise
    except KeyboardInterrupt:
        course.teller.tell(Interrupted(course.reached))
        raise
    finally:
        _write_tables(course.folder, course.federation.sites.names)


def _failed(error: RunFailed, round: int) -> Failed:
    if isinstance(error, SiteFailed):
        return Failed(**asdict(error.card))
    return Failed("coordinator", round, "round", type(error).__name__, str(error), "")


def _write_tables(folder: Path, sites: Sequence[str]) -> None:
    events = [event for _, event in surviving(read_journal(folder / "journal.jsonl"))]
    write_rounds(folder / "rounds.csv", events, sites)
    write_digests(folder / "digests.csv", events)
    write_forgetting(folder / "forgetting.csv", events)


@dataclass(frozen=True)
class Teller:
    """Turns what an engine hears into events, and tells all listeners."""

    listeners: Sequence[Listener]
    study: Study

    def tell(self, event: Event) -> None:
        """Tell an event to everyone."""
        for listener in self.listeners:
            listener(event)

    def hear(self, request: Request, reply: Reply) -> None:
        """Hear of a site's reply as it comes."""
        event = event_of(request, reply, self.study.task.metric)
        if event:
            self.tell(event)

    def miss(self, card: FailureCard) -> None:
        """Hear of a site that a quorum goes on without."""
        self.tell(SiteMissed(**asdict(card)))


@dataclass
class Course:
    """The course of one run: where it starts, its rounds, its end."""

    study: Study
    folder: Path
    federation: Federation[Sites]
    machine: Machine
    teller: Teller
    resumes: bool
    reached: int = field(default=0, init=False)
    _began: float = field(default_factory=time.perf_counter, init=False)

    def follow(self) -> State:
        """Go through all rounds that are left, then test and write the models."""
        state = self._begin()
        while state.round < self.study.rounds and not self._is_over(state):
            state = self._round(state)
        self._end(state)
        return state

    def _begin(self) -> State:
        names = self.federation.sites.names
        self.teller.tell(self._started(names))
        replies = self.federation.sites.ask({name: Describe() for name in names})
        held = newest_complete_round(self.folder, {r.site: r.rounds for r in replies})
        self.teller.tell(self.federation.policy)
        self.teller.tell(self.federation.account)
        self.teller.tell(self.federation.work)
        if self.resumes:
            self.teller.tell(RunResumed(held))
        self.reached = held
        return load_state(self.folder, held) if held else self.federation.start

    def _started(self, names: tuple[str, ...]) -> RunStarted:
        return RunStarted(
            name=self.study.name,
            arm=self.study.title,
            seed=self.study.seed,
            rounds=self.study.rounds,
            sites=names,
            study=fingerprint(self.study),
            version=__version__,
            torch=torch.__version__,
            device=str(self.machine.device),
            precision=self.machine.precision_name,
            threads=self.machine.threads,
            title=self.federation.method.title,
        )

    def _round(self, state: State) -> State:
        started = time.perf_counter()
        federation = self.federation
        outcome = federation.topology.round(state, federation.sites, federation.method)
        state, score = self._judged(outcome.state)
        seconds = time.perf_counter() - started
        digest_of_all = _digest_of_all(state, outcome.replies)
        # The journal first: a run killed between the two plays this round again, to the same bits.
        self.teller.tell(
            RoundFinished(state.round, digest_of_all, score, state.best_round, seconds)
        )
        save_state(self.folder, state)
        self.reached = state.round
        return state

    def _judged(self, state: State) -> tuple[State, float | None]:
        """Validate the aggregate at every site, and remember the best round."""
        if state.round % self.study.stop.validate_every and state.round < self.study.rounds:
            return state, None
        asked = evaluated(self.federation, state, "validation", self.federation.sites.names)
        replies = [reply for reply in asked if reply.cases]
        if not replies:  # nobody validates: the newest round is the best known
            return _best(state, state.best_score), None
        metric = self.study.task.metric
        total = sum(reply.examples for reply in replies)
        score = sum(reply.examples * reply.metrics[metric] for reply in replies) / total
        if score > state.best_score:
            state = _best(state, score)
        return state, score

    def _is_over(self, state: State) -> bool:
        patience = self.study.stop.patience
        if not patience or state.round - state.best_round < patience:
            return False
        self.teller.tell(StoppedEarly(state.round, state.best_round))
        return True

    def _end(self, state: State) -> None:
        ending = Ending(self.study, self.folder, self.federation, state)
        tested, scores = ending.scores()
        unseen = ending.unseen(tested)
        seconds = time.perf_counter() - self._began
        best, last = tested.round, state.fingerprint
        self.teller.tell(RunFinished(state.round, best, last, seconds, peak_memory()))
        told = Told(self.study.title, self.study.seed, best)
        if self.study.holdout_sites:
            write_scores(self.folder / "unseen.csv", unseen, told)
        write_scores(self.folder / "scores.csv", scores, told)  # last: it marks a finished run


def _best(state: State, score: float) -> State:
    return replace(state, best_round=state.round, best_score=score, best_seen=state.seen)


def _digest_of_all(state: State, replies: Sequence[Reply]) -> str:
    """Fingerprint a round: what is shared, and every site's private state, in roster order."""
    sha = sha256(state.fingerprint.encode())
    for reply in replies:
        sha.update(f"{reply.site}|{reply.digest}|".encode())
    return sha.hexdigest()
