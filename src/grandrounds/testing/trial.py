"""A trial runs a study as the house runs it, and records what each round came to."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TypeAlias

import torch
from torch import Tensor

from grandrounds.algorithms.method import Method
from grandrounds.algorithms.sharing import sharing_filter
from grandrounds.algorithms.star import Star
from grandrounds.algorithms.topology import RoundResult, Sites
from grandrounds.api.study import Source, load
from grandrounds.core.device import deterministic
from grandrounds.core.errors import SiteFailed
from grandrounds.core.events import Event, RoundFinished
from grandrounds.core.journal import Journal
from grandrounds.core.run_folder import RunFolder
from grandrounds.core.state import State
from grandrounds.core.weights import Weights, select
from grandrounds.engines.in_process import InProcessEngine
from grandrounds.runs.build import Federation, build_federation, distribute
from grandrounds.runs.costs import RunPlan, plan_run
from grandrounds.runs.folder import lock_folder
from grandrounds.runs.listeners import EventBus, SilentListener
from grandrounds.runs.loop import RunLoop, run_recorded
from grandrounds.runs.site_data import open_sites
from grandrounds.site.model_state import SiteStore, model_tensors, personal_tensors
from grandrounds.study.file import Table, example, read_table
from grandrounds.study.site_file import SiteSource
from grandrounds.study.study import Study


def study_in_star(source: Source | None, **changes: object) -> Study:
    """Load a study with changes, in a star.

    Without a source it is the smallest one: two simulated sites of unlike size, for two rounds. One
    process and two compute with the same threads. Raises `BadStudy`.
    """
    study = load(small_table() if source is None else source, topology="star", **changes)
    return study if study.training.threads else load(study, training={"threads": 1})


def small_table() -> Table:
    """Return the table of a study that trains in a moment, on the processor."""
    table = read_table(example("tiny"))
    table["site"] = table["site"][:2]
    table["site"][1]["slices"] = 3
    table["training"]["device"] = "cpu"
    return {**table, "rounds": 2}


@dataclass(frozen=True)
class Record:
    """What a run came to: each round's state and replies, of which all tensors are copies.

    `first` maps each site to its model before any training; `trained` names the parameters that
    are trained; `scores` is the table of the test cases, if they were scored. What each site keeps
    lies in `folder`.
    """

    folder: Path
    first: Mapping[str, Weights]
    trained: frozenset[str]
    rounds: Mapping[int, RoundResult]
    scores: str = ""

    @property
    def last(self) -> int:
        """Return the number of the last round."""
        return max(self.rounds)

    def kept(self, site: str, round: int) -> Weights:
        """Return what a site keeps after a round; empty where it is not on the disk any more."""
        store = SiteStore(RunFolder(self.folder).site(site).path).private
        return store.load(round)[0] if store.path(round).exists() else {}

    def model(self, site: str, round: int) -> Weights:
        """Return the model with which a site is scored after a round, as far as it is its own."""
        kept = self.kept(site, round)
        return model_tensors(kept) | model_tensors(personal_tensors(kept))


@dataclass(frozen=True)
class Parting:
    """Where two runs part: the first round with other bits, and a sentence on what differs."""

    round: int
    sentence: str


def parting(one: Record, other: Record) -> Parting | None:
    """Find where two runs part; None where all their bits are equal."""
    for number in one.rounds:
        if number not in other.rounds:
            return Parting(number, f"round {number} is missing")
        if found := _parting_in(number, one, other):
            return Parting(number, found)
    if one.scores and other.scores and one.scores != other.scores:
        return Parting(one.last, f"the scores of the test cases differ ({_odd_score(one, other)})")
    return None


def _parting_in(round: int, one: Record, other: Record) -> str:
    mine, theirs = one.rounds[round], other.rounds[round]
    replies = {reply.site: reply for reply in theirs.replies}
    for reply in mine.replies:
        where, again = f"of site '{reply.site}' differs in round {round}", replies[reply.site]
        if found := difference(reply.weights, again.weights, where):
            return found
        if reply.digest != again.digest:
            mine_kept, other_kept = (each.kept(reply.site, round) for each in (one, other))
            return difference(mine_kept, other_kept, where) or f"what is kept {where}"
        if dict(reply.metrics) != dict(again.metrics):
            return f"the loss {where}"
    return difference_of_states(mine.state, theirs.state, f"differs in round {round}")


def difference_of_states(one: State, other: State, where: str) -> str:
    """Return which tensor of a state differs, and how far; empty where all bits are equal."""
    return difference(one.weights, other.weights, where) or difference(
        one.memory, other.memory, f"that the server remembers {where}"
    )


def _odd_score(one: Record, other: Record) -> str:
    pairs = zip(one.scores.splitlines(), other.scores.splitlines(), strict=False)
    return next((f"{mine} and {theirs}" for mine, theirs in pairs if mine != theirs), "one lacks")


def difference(one: Mapping[str, Tensor], other: Mapping[str, Tensor], where: str) -> str:
    """Return which tensor differs, and how far; empty where all bits are equal."""
    names = list(dict.fromkeys([*one, *other]))
    odd = [name for name in names if not same_bits(one.get(name), other.get(name))]
    if not odd:
        return ""
    first, more = odd[0], f", and {len(odd) - 1} more" if len(odd) > 1 else ""
    return f"{first} {where} ({_distance(one.get(first), other.get(first))}){more}"


def same_bits(one: Tensor | None, other: Tensor | None) -> bool:
    """Tell whether two tensors are alike in type, shape and every bit."""
    if one is None or other is None or one.dtype != other.dtype or one.shape != other.shape:
        return False
    return torch.equal(*(each.reshape(-1).view(torch.uint8) for each in (one, other)))


def _distance(one: Tensor | None, other: Tensor | None) -> str:
    if one is None or other is None:
        return "one of the two lacks it"
    if one.shape != other.shape or one.dtype != other.dtype:
        return f"{tuple(one.shape)} of {one.dtype} and {tuple(other.shape)} of {other.dtype}"
    return f"largest difference {float((one.double() - other.double()).abs().max()):.2g}"


@dataclass(frozen=True)
class RecordingStar(Star):
    """A star that keeps a copy of what each round comes to."""

    rounds: dict[int, RoundResult] = field(default_factory=dict[int, RoundResult])

    def round(self, state: State, sites: Sites, method: Method) -> RoundResult:
        result = super().round(state, sites, method)
        self.rounds[result.state.round] = copied(result)
        return result


def copied(result: RoundResult) -> RoundResult:
    """Copy the tensors of a round, which a method might change in place later."""
    state = result.state
    return replace(
        result,
        state=replace(state, weights=cloned(state.weights), memory=cloned(state.memory)),
        replies=[replace(reply, weights=cloned(reply.weights)) for reply in result.replies],
    )


def cloned(weights: Weights) -> Weights:
    """Return a copy of each tensor."""
    return {name: tensor.detach().clone() for name, tensor in weights.items()}


def said_by(error: Exception) -> str:
    """Return an error as a clause; a site's failure says what went wrong there."""
    return str(error) if isinstance(error, SiteFailed) else f"{type(error).__name__}: {error}"


class _Stopped(KeyboardInterrupt):
    """The run is stopped as Ctrl-C would stop it."""


def _stop(round: int, event: Event) -> None:
    if isinstance(event, RoundFinished) and event.round == round:
        raise _Stopped


def with_method(plan: RunPlan, method: Method) -> RunPlan:
    """Return a plan with another method of the same task."""
    norm_buffers, groups = plan.study.training.norm_buffers, plan.task.groups(plan.model)
    travels = sharing_filter(plan.model, groups, method.sharing(), norm_buffers=norm_buffers)
    return replace(plan, method=method, travels=travels)


# From a federation to what stands in for its sites.
Between: TypeAlias = Callable[[Federation[Sites]], Sites]


def its_sites(federation: Federation[Sites]) -> Sites:
    """Return a federation's sites as they are."""
    return federation.sites


@dataclass(frozen=True)
class Trial:
    """A study in a star in which a class is tried; each run has a folder of its own in `folder`.

    `title` is the name of the class in sentences.
    """

    title: str
    study: Study
    files: tuple[SiteSource, ...]
    folder: Path

    def of(self, study: Study) -> "Trial":
        """Return a trial of another study, which has some of the sites."""
        files = tuple(file for file in self.files if file.name in study.roster)
        return replace(self, study=study, files=files)

    def plan(self) -> RunPlan:
        """Plan a run of the study anew: its model is no other run's."""
        return plan_run(self.study)

    def build(self, name: str, plan: RunPlan) -> Federation[InProcessEngine]:
        """Build the federation of a plan in a folder of this name."""
        data = open_sites(plan.study, self.files)
        machine = plan.study.machine()
        return build_federation(plan, data, self.folder / name, machine, SilentListener())

    def play(self, name: str, plan: RunPlan | None = None, *, processes: int = 1) -> Record:
        """Play the rounds alone, without validation and test."""
        plan, rounds = plan or self.plan(), dict[int, RoundResult]()
        built, folder, study = self.build(name, plan), self.folder / name, plan.study
        listener, state = SilentListener(), built.start
        spread = distribute(built, study, self.files, folder, listener, processes=processes)
        with deterministic(study.machine(processes=processes)), spread as federation:
            for number in range(1, study.rounds + 1):
                result = federation.topology.round(state, federation.sites, federation.method)
                rounds[number] = copied(result)
                state = result.state
        return self._record(name, plan, built, rounds)

    def run(
        self,
        name: str,
        *,
        processes: int = 1,
        resume: bool = False,
        stop_in: int = 0,
        between: Between = its_sites,
    ) -> Record:
        """Run the study as `runs.loop.run` does, and record it.

        With `stop_in` the run is stopped in this round, once it is trained and before it is saved.
        """
        study, plan, folder = self.study, self.plan(), self.folder / name
        machine, star = study.machine(processes=processes), RecordingStar()
        with lock_folder(folder, study, resume=resume), deterministic(machine):
            listeners = (Journal(RunFolder(folder).journal), partial(_stop, stop_in))
            bus = EventBus(listeners, study)
            built = build_federation(plan, open_sites(study, self.files), folder, machine, bus)
            distributed = distribute(built, study, self.files, folder, bus, processes=processes)
            with distributed as federation:
                watched = replace(federation, topology=star, sites=between(federation))
                loop = RunLoop(study, folder, watched, machine, bus, resume)
                try:
                    run_recorded(loop)
                except _Stopped:
                    return self._record(name, plan, built, star.rounds)
        scores = RunFolder(folder).scores.read_text("utf-8")
        return replace(self._record(name, plan, built, star.rounds), scores=scores)

    def _record(
        self,
        name: str,
        plan: RunPlan,
        federation: Federation[InProcessEngine],
        rounds: Mapping[int, RoundResult],
    ) -> Record:
        first = {s.name: select(s.first_weights(), s.uses) for s in federation.sites.sites}
        trained = frozenset(n for n, p in plan.model.named_parameters() if p.requires_grad)
        return Record(self.folder / name, first, trained, rounds)


def joined(records: Sequence[Record]) -> Record:
    """Join the records of a run that was stopped; a round that was repeated counts as repeated."""
    rounds = {number: result for each in records for number, result in each.rounds.items()}
    return replace(records[-1], rounds=dict(sorted(rounds.items())))
