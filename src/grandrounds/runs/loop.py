"""A run executes its rounds here, tests its model, and writes the models of the sites."""

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from hashlib import sha256
from pathlib import Path

import torch

from grandrounds import __version__
from grandrounds.algorithms.aggregation import Updates
from grandrounds.algorithms.cosines import update_cosines
from grandrounds.algorithms.robustness import NormWatch, update_norms
from grandrounds.algorithms.star import Star
from grandrounds.algorithms.topology import Sites
from grandrounds.core.device import Machine, deterministic, peak_memory
from grandrounds.core.errors import RunFailed, SiteFailed
from grandrounds.core.events import (
    BudgetReached,
    Failed,
    Interrupted,
    Listener,
    RoundFinished,
    RunFinished,
    RunResumed,
    RunStarted,
    SiteJoined,
    StoppedEarly,
    UpdatesCompared,
    UpdatesJudged,
)
from grandrounds.core.journal import Journal, read_journal, without_superseded
from grandrounds.core.messages import CaseScore, Describe, Evaluate, Finish, Reply, Tune
from grandrounds.core.run_folder import RunFolder
from grandrounds.core.state import State, load_state, read_sealed, save_state, write_sealed
from grandrounds.core.weights import Weights
from grandrounds.data.cohort import SplitName
from grandrounds.runs.build import Federation, build_federation, distribute, num_processes
from grandrounds.runs.costs import check_memory, plan_run
from grandrounds.runs.folder import lock_folder
from grandrounds.runs.joining import (
    check_model_fits,
    joined_sites,
    joining,
    scored_anew,
    with_awaited,
)
from grandrounds.runs.ledgers import coordinator_ledger
from grandrounds.runs.listeners import EventBus
from grandrounds.runs.resume import VERSIONS, changes_since, check_same, find_start
from grandrounds.runs.site_data import Preparing, nobody_told, open_sites
from grandrounds.runs.tables import (
    ScoreLabel,
    write_digests,
    write_forgetting,
    write_rounds,
    write_scores,
)
from grandrounds.study.file import fingerprint
from grandrounds.study.site_file import SiteSource
from grandrounds.study.study import Study


def run_study(
    study: Study,
    folder: Path,
    *,
    files: Sequence[SiteSource] = (),
    resume: bool = False,
    accept_changes: bool = False,
    listeners: Sequence[Listener] = (),
    preparing: Preparing = nobody_told,
    workers: int = 1,
    devices: tuple[str, ...] = (),
    tests: bool = True,
) -> State:
    """Run a study to its end in `folder`, and return the last round's state.

    With several `workers`, as many processes share the sites; the numbers are the same as long as
    training.threads says how many threads each one has. They compute on `devices` in turn, or on
    all accelerators that there are. Without `tests` nothing is tested, and no model is written.
    With `resume` the run goes on from the newest round that the coordinator and all sites hold, to
    the same bits as if it had never stopped; under another version, or with other data, only if
    it is told to `accept_changes`. It also goes on to more rounds than it began with, where the
    schedule allows it (`Extension`). Raises `BadInput` before anything trains, `RunFailed`
    afterwards; both leave everything that was saved.
    """
    plan, processes = plan_run(study), num_processes(study, workers)
    check_memory(plan, processes=processes)
    site_data = open_sites(study, files, preparing=preparing)
    machine = study.machine(processes=processes)
    locked = lock_folder(folder, study, resume=resume, extends=True, accepts=accept_changes)
    with locked, deterministic(machine):
        ledger = coordinator_ledger(study, folder)
        bus = EventBus((Journal(RunFolder(folder).journal), *listeners), study, ledger)
        built = build_federation(plan, site_data, folder, machine, bus)
        with distribute(
            built, study, files, folder, bus, processes=processes, devices=devices
        ) as federation:
            loop = RunLoop(study, folder, federation, machine, bus, resume, accept_changes, tests)
            return run_recorded(loop)


def run_recorded(run_loop: "RunLoop") -> State:
    """Execute a run loop to its last state; emit what ends it early; always write the tables."""
    try:
        return run_loop.follow()
    except RunFailed as error:
        run_loop.bus.emit(_failed(error, run_loop.reached))
        raise
    except KeyboardInterrupt:
        run_loop.bus.emit(Interrupted(run_loop.reached))
        raise
    finally:
        _write_tables(run_loop.folder, run_loop.federation.sites.names)


def _failed(error: RunFailed, round: int) -> Failed:
    if isinstance(error, SiteFailed):
        return Failed(**asdict(error.card))
    return Failed("coordinator", round, "round", type(error).__name__, str(error), "")


def _write_tables(folder: Path, sites: Sequence[str]) -> None:
    files = RunFolder(folder)
    events = [event for _, event in without_superseded(read_journal(files.journal))]
    write_rounds(files.rounds, events, sites)
    write_digests(files.digests, events)
    write_forgetting(files.forgetting, events)


@dataclass
class RunLoop:
    """The loop of one run: its start, its rounds and its end."""

    study: Study
    folder: Path
    federation: Federation[Sites]
    machine: Machine
    bus: EventBus
    resumes: bool
    accepts_changes: bool = False
    tests: bool = True
    reached: int = field(default=0, init=False)
    _watch: NormWatch = field(default_factory=NormWatch, init=False)
    _exhausted: str = field(default="", init=False)
    _began: float = field(default_factory=time.perf_counter, init=False)

    def follow(self) -> State:
        """Execute all rounds that are left, then test and write the models."""
        state = self._begin()
        while state.round < self.study.rounds and not self._is_over(state):
            state = self._round(state)
        self._end(state)
        return state

    def _begin(self) -> State:
        names = self.federation.sites.names
        self.bus.emit(self._started(names))
        replies = self.federation.sites.ask({name: Describe() for name in names})
        held = {r.site: r.rounds for r in replies}
        start = find_start(self.folder, held, resumes=self.resumes, study=self.study)
        if start.state:
            check_model_fits(start.state.weights, self.federation.start.weights, self.folder)
        changes = changes_since(self.folder, start, [r.site for r in replies if r.changed])
        if not self.accepts_changes:
            check_same(self.folder, changes)
        self.bus.emit(self.federation.policy)
        self.bus.emit(self.federation.account)
        self.bus.emit(self.federation.work)
        if self.resumes:
            self.bus.emit(RunResumed(start.round, changes))
        for lost in start.lost:
            self.bus.emit(lost)
        self.reached = start.round
        return with_awaited(start.state or self.federation.start, self.study)

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
        federation, study = self.federation, self.study
        number = state.round + 1
        for site in joining(study, number):
            self.bus.emit(SiteJoined(site, number))
        sites = joined_sites(study, number, federation.sites)
        outcome = federation.topology.round(scored_anew(state, study), sites, federation.method)
        self._compare_updates(state, outcome.replies)
        self._judge_updates(state, outcome.replies)
        self._exhausted = next((reply.site for reply in outcome.replies if reply.exhausted), "")
        state, score = self._validated(with_awaited(outcome.state, study))
        seconds = time.perf_counter() - started
        digest_of_all, best = _digest_of_all(state, outcome.replies), state.best_round
        finished = RoundFinished(number, digest_of_all, score, best, seconds, outcome.groups)
        # The journal first: a run killed between the two repeats this round, to the same bits.
        self.bus.emit(finished)
        save_state(self.folder, state, versions=VERSIONS)
        self.reached = state.round
        return state

    def _compare_updates(self, before: State, replies: Sequence[Reply]) -> None:
        """Emit the cosines between the sites' updates, where the study asks for this round's.

        Sites that started apart have no common start in round 1, and are not compared there.
        """
        every, number = self.study.aggregation.cosines_every, before.round + 1
        asked = every and (number % every == 0 or number == self.study.rounds)
        if asked and before.weights:
            whole = self.federation.method.guards.admit(replies, before)
            cosines = update_cosines(before.weights, whole, self.federation.compared)
            self.bus.emit(UpdatesCompared(number, cosines))

    def _judge_updates(self, before: State, replies: Sequence[Reply]) -> None:
        """Emit which updates of a round are unusual, and which were not averaged.

        Over other topologies than a star, and of masked ones, the coordinator has none to judge.
        """
        method, number = self.federation.method, before.round + 1
        if not (isinstance(self.federation.topology, Star) and method.sharing().federates):
            return
        if method.guards.masks:  # nobody but a site can read its update
            return
        updates = Updates(method.guards.admit(replies, before), before, method.averaging)
        norms = update_norms(before.weights, updates.replies) if before.weights else {}
        unusual = self._watch.unusual(norms)
        if unusual or updates.left_out:
            self.bus.emit(UpdatesJudged(number, norms, unusual, updates.left_out))

    def _validated(self, state: State) -> tuple[State, float | None]:
        """Validate the aggregate at every site, and record the best round."""
        if state.round % self.study.stop.validate_every and state.round < self.study.rounds:
            return state, None
        names = joined_sites(self.study, state.round, self.federation.sites).names
        all_replies = evaluate_sites(self.federation, state, "validation", names)
        replies = [reply for reply in all_replies if reply.cases]
        if not replies:  # nobody validates: the newest round is the best known
            return _best(state, state.best_score), None
        metric = self.study.task.metric
        total = sum(reply.examples for reply in replies)
        score = sum(reply.examples * reply.metrics[metric] for reply in replies) / total
        if score > state.best_score:
            state = _best(state, score)
        return state, score

    def _is_over(self, state: State) -> bool:
        if self._exhausted:
            self.bus.emit(BudgetReached(self._exhausted, state.round))
            return True
        patience = self.study.stop.patience
        if not patience or state.round - state.best_round < patience:
            return False
        if self.study.awaited(state.round):
            return False
        self.bus.emit(StoppedEarly(state.round, state.best_round))
        return True

    def _end(self, state: State) -> None:
        final_test = FinalTest(self.study, self.folder, self.federation, state)
        tested, scores = final_test.scores() if self.tests else (final_test.tested, [])
        unseen = final_test.unseen(tested) if self.tests else []
        seconds = time.perf_counter() - self._began
        best, last = tested.round, state.fingerprint
        self.bus.emit(RunFinished(state.round, best, last, seconds, peak_memory()))
        files, label = RunFolder(self.folder), ScoreLabel(self.study.title, self.study.seed, best)
        if self.study.holdout_sites and self.tests:
            write_scores(files.unseen, unseen, label)
        write_scores(files.scores, scores, label)  # last: it marks a finished run


def _best(state: State, score: float) -> State:
    return replace(state, best_round=state.round, best_score=score, best_seen=state.seen)


def _digest_of_all(state: State, replies: Sequence[Reply]) -> str:
    """Return the digest of the shared state and every site's private state, in roster order."""
    sha = sha256(state.fingerprint.encode())
    for reply in replies:
        sha.update(f"{reply.site}|{reply.digest}|".encode())
    return sha.hexdigest()


def evaluate_sites(
    federation: Federation[Sites],
    state: State,
    split: SplitName,
    sites: Sequence[str],
    *,
    cases: bool = False,
    tuned: bool = False,
) -> list[Reply]:
    """Score a state's model at these sites."""
    order = Evaluate(round=state.round, since=0, split=split, cases=cases, tuned=tuned)
    own = federation.method.averaging.of_site
    orders = {
        name: replace(order, since=state.last_of(name), weights=own(state.weights, name))
        for name in sites
    }
    return federation.topology.evaluate(federation.sites, orders)


@dataclass(frozen=True)
class FinalTest:
    """The test after the last round; `tested` is the state whose model is tested."""

    study: Study
    folder: Path
    federation: Federation[Sites]
    last: State

    @property
    def _files(self) -> RunFolder:
        return RunFolder(self.folder)

    @property
    def tested(self) -> State:
        """Return the state of the best round, or of the last one if the study tests that."""
        best = self.study.stop.test == "best"
        return load_state(self.folder, self.last.best_round if best else self.last.round)

    def scores(self) -> tuple[State, list[CaseScore]]:
        """Write the models, and return the tested state and the score of every test case."""
        tested = self.tested
        self._write_shared(self._files.shared, tested)
        self._write_shared(self._files.last, self.last)
        self._write_personal(tested)
        tuned = bool(self.study.training.fine_tune)
        sites = self._tuned(tested) if tuned else self.federation.sites.names
        replies = evaluate_sites(self.federation, tested, "test", sites, cases=True, tuned=tuned)
        return tested, [score for reply in replies for score in reply.scores]

    def unseen(self, tested: State) -> list[CaseScore]:
        """Score the tested model at the sites that did not train, with their first private part."""
        holdouts = self.federation.holdouts
        weights = self._holdout_weights(tested) if holdouts else {}
        order = Evaluate(round=tested.round, since=0, split="test", cases=True, weights=weights)
        return [score for site in holdouts for score in site.answer(order).scores]

    def _holdout_weights(self, tested: State) -> Weights:
        """Return the part of the model that a site that did not train may get."""
        first = self._files.site(self.federation.sites.names[0])
        if self.federation.method.sharing().pooled:
            return read_sealed(first.private())[0]
        if self.federation.topology.model_at_sites:
            return read_sealed(first.shared())[0]
        return tested.weights

    def _write_shared(self, path: Path, state: State) -> None:
        if self.federation.topology.model_at_sites:
            return  # the sites write it themselves
        notes = {"study": fingerprint(self.study), "round": str(state.round)}
        write_sealed(path, state.weights, notes, {"": state.digest_of_weights})

    def _write_personal(self, tested: State) -> None:
        orders = {
            name: Finish(round=self.last.last_of(name), best=tested.last_of(name))
            for name in self.federation.sites.names
        }
        self.federation.sites.ask(orders, quorum=self.federation.topology.quorum)

    def _tuned(self, tested: State) -> tuple[str, ...]:
        """Fine-tune the tested model at each site alone; return the sites that did so."""
        order = Tune(
            round=tested.round,
            since=0,
            epochs=self.study.training.fine_tune,
        )
        sites, own = self.federation.sites, self.federation.method.averaging.of_site
        orders = {
            name: replace(order, since=tested.last_of(name), weights=own(tested.weights, name))
            for name in sites.names
        }
        replies = sites.ask(orders, quorum=self.federation.topology.quorum)
        return tuple(reply.site for reply in replies)
