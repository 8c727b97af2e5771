"""A run: build everything from a study, then go round after round, saved at every step."""

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from hashlib import sha256
from pathlib import Path

import torch

from grandrounds import __version__
from grandrounds.build import Federation, build_federation
from grandrounds.checkpoints import State, load_state, newest_complete_round, save_state
from grandrounds.errors import RunFailed, SiteFailed
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
    SiteTested,
    SiteTrained,
    SiteValidated,
    StoppedEarly,
)
from grandrounds.journal import Journal, read_journal, surviving
from grandrounds.machine import Machine, machine_for, peak_memory, repeatable
from grandrounds.messages import Describe, Evaluate, Finish, Reply, Request, Train
from grandrounds.opening import open_sites
from grandrounds.run_folder import claimed
from grandrounds.site_file import SiteFile
from grandrounds.study import Study
from grandrounds.study_file import fingerprint
from grandrounds.tables import write_digests, write_rounds, write_scores
from grandrounds.weights import digest, num_bytes, write


def run(
    study: Study,
    folder: Path,
    *,
    files: Sequence[SiteFile] = (),
    resume: bool = False,
    listeners: Sequence[Listener] = (),
) -> State:
    """Run a study to its end in `folder`, and give the last round's state.

    With `resume` the run goes on from the newest round that the coordinator and all sites hold, to
    the same bits as if it had never stopped. Raises `BadInput` before anything trains, `RunFailed`
    afterwards; both leave everything that was saved.
    """
    check_memory(study)
    opened = open_sites(study, files)
    machine = machine_for(study.training)
    with claimed(folder, study, resume=resume), repeatable(machine):
        teller = Teller((Journal(folder / "journal.jsonl"), *listeners), study)
        federation = build_federation(study, opened, folder, machine, teller.hear)
        course = Course(study, folder, federation, machine, teller, resume)
        try:
            return course.follow()
        except RunFailed as error:
            teller.tell(_failed(error, course.reached))
            raise
        except KeyboardInterrupt:
            teller.tell(Interrupted(course.reached))
            raise
        finally:
            _write_tables(folder, federation.sites.names)


def _failed(error: RunFailed, round: int) -> Failed:
    if isinstance(error, SiteFailed):
        return Failed(**asdict(error.card))
    return Failed("coordinator", round, "round", type(error).__name__, str(error), "")


def _write_tables(folder: Path, sites: Sequence[str]) -> None:
    events = [event for _, event in surviving(read_journal(folder / "journal.jsonl"))]
    write_rounds(folder / "rounds.csv", events, sites)
    write_digests(folder / "digests.csv", events)


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
        event = self._event(request, reply)
        if event:
            self.tell(event)

    def _event(self, request: Request, reply: Reply) -> Event | None:
        match request:
            case Train():
                return SiteTrained(
                    round=reply.round,
                    site=reply.site,
                    seconds=reply.seconds,
                    examples=reply.examples,
                    steps=reply.steps,
                    bytes_up=num_bytes(reply.weights),
                    bytes_down=num_bytes(request.weights),
                    losses=reply.metrics,
                )
            case Evaluate(cases=True):
                return SiteTested(
                    reply.round, reply.site, reply.seconds, reply.cases, dict(reply.metrics)
                )
            case Evaluate():
                score = reply.metrics.get(self.study.task.metric, 0.0)
                down = num_bytes(request.weights)
                return SiteValidated(
                    reply.round, reply.site, reply.seconds, reply.cases, score, down
                )
            case Finish():
                return None
            case Describe():
                return reply.ready


@dataclass
class Course:
    """The course of one run: where it starts, its rounds, its end."""

    study: Study
    folder: Path
    federation: Federation
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
        order = Evaluate(round=state.round, split="validation", weights=state.weights)
        sites = self.federation.sites
        replies = [r for r in sites.ask(dict.fromkeys(sites.names, order)) if r.cases]
        if not replies:  # nobody validates: the newest round is the best known
            return replace(state, best_round=state.round), None
        metric = self.study.task.metric
        total = sum(reply.examples for reply in replies)
        score = sum(reply.examples * reply.metrics[metric] for reply in replies) / total
        if score > state.best_score:
            state = replace(state, best_round=state.round, best_score=score)
        return state, score

    def _is_over(self, state: State) -> bool:
        patience = self.study.stop.patience
        if not patience or state.round - state.best_round < patience:
            return False
        self.teller.tell(StoppedEarly(state.round, state.best_round))
        return True

    def _end(self, state: State) -> None:
        names = self.federation.sites.names
        best = state.best_round if self.study.stop.test == "best" else state.round
        tested = load_state(self.folder, best).weights
        notes = {"study": fingerprint(self.study), "round": str(best)}
        write(self.folder / "model" / "shared.safetensors", tested, notes)
        write(
            self.folder / "model" / "last.safetensors",
            state.weights,
            notes | {"round": str(state.round)},
        )
        self.federation.sites.ask({n: Finish(round=state.round, best=best) for n in names})
        order = Evaluate(round=best, split="test", cases=True, weights=tested)
        replies = self.federation.sites.ask(dict.fromkeys(names, order))
        scores = [score for reply in replies for score in reply.scores]
        seconds = time.perf_counter() - self._began
        last = digest(state.weights)
        self.teller.tell(RunFinished(state.round, best, last, seconds, peak_memory()))
        path, arm, seed = self.folder / "scores.csv", self.study.title, self.study.seed
        write_scores(path, scores, arm=arm, seed=seed, round=best)  # last: it marks a finished run


def _digest_of_all(state: State, replies: Sequence[Reply]) -> str:
    """Fingerprint a round: what is shared, and every site's private state, in roster order."""
    sha = sha256(digest(state.weights).encode())
    for reply in replies:
        sha.update(f"{reply.site}|{reply.digest}|".encode())
    return sha.hexdigest()
