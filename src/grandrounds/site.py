"""Everything that one hospital does. An engine only decides how a request reaches `Site.answer`."""

import time
from collections.abc import Callable, Generator
from concurrent.futures import Executor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import TypeAlias, assert_never, cast

import torch
from torch import nn

from grandrounds.bench import OPTIMIZER, Bench
from grandrounds.checkpoints import Rounds
from grandrounds.data.case import Cohort, Split
from grandrounds.evaluation import panels, save_panels, scored
from grandrounds.events import SiteReady
from grandrounds.messages import CaseScore, Describe, Evaluate, Finish, Reply, Request, Train
from grandrounds.seeds import seed_for
from grandrounds.tasks.task import Examples, Task
from grandrounds.training import Training, train
from grandrounds.weights import Filter, Weights, digest, select, starting_with, write

Promise: TypeAlias = Callable[[], Reply]


@dataclass(frozen=True)
class Site:
    """One hospital: its data, its task, its private state on its own disk.

    `travels` selects the tensors that may leave; `first_weights` gives the model before any
    training; `bench` holds the model in memory and may be shared with other sites of the same
    process. `cohorts` is the site's own data (several only where a comparison pools them). `disk`
    keeps and fingerprints private state while the site, or another one, computes.
    """

    name: str
    task: Task
    cohorts: tuple[Cohort, ...]
    training: Training
    rounds: int
    seed: int
    travels: Filter
    first_weights: Callable[[], Weights]
    bench: Bench
    folder: Path
    ready: SiteReady
    disk: Executor
    shows_images: bool = True

    def answer(self, request: Request) -> Reply:
        """Do what is asked; when the reply is released, what must survive is on this site's disk.

        Randomness depends on (study seed, site, round) alone, and leaves no trace.
        """
        return self.begin(request)()

    def begin(self, request: Request) -> Promise:
        """Do what is asked, and promise the reply for when the disk has taken what must survive.

        An engine may let another site compute meanwhile; it releases no reply before it has kept
        its promise.
        """
        started = time.perf_counter()
        with _own_randomness(seed_for(self.seed, self.name, request.round, type(request).__name__)):
            promise = self._begin(request)
        seconds = time.perf_counter() - started
        return lambda: replace(promise(), examples=len(self._train), seconds=seconds)

    def _begin(self, request: Request) -> Promise:
        match request:
            case Describe():
                return self._describe
            case Train():
                return self._train_round(request)
            case Evaluate():
                return partial(_same, self._evaluate(request))
            case Finish():
                return partial(_same, self._finish(request))
            case _:
                assert_never(request)

    @cached_property
    def _train(self) -> Examples:
        return self.task.training_examples(self.cohorts)

    @cached_property
    def _uses(self) -> Filter:
        return self.task.uses(self.name)

    @property
    def _state(self) -> Rounds:
        return Rounds(self.folder / "state")

    def _describe(self) -> Reply:
        return Reply(site=self.name, round=0, rounds=self._state.held(), ready=self.ready)

    def _train_round(self, request: Train) -> Promise:
        self._sit_down(request.round - 1, request.weights, to_train=True)
        self.bench.set_rate(self.training.rate(request.round, self.rounds))
        trained = train(
            self.bench,
            self.task,
            self._train,
            plan=request.plan,
            batch_size=self.training.batch_size,
            seed=seed_for(self.seed, self.name, request.round, "batches"),
        )
        reply = Reply(
            site=self.name,
            round=request.round,
            steps=trained.steps,
            metrics=trained.losses,
            weights=self.bench.weights(self.travels),
        )
        private = self._private_state()
        kept = self.disk.submit(self._state.save, request.round, private, {}, keep=request.keep)
        fingerprint = self.disk.submit(digest, private)

        def promise() -> Reply:
            kept.result()
            return replace(reply, digest=fingerprint.result())

        return promise

    def _sit_down(self, round: int, shared: Weights, *, to_train: bool) -> None:
        """Put this site's model of a round on the bench: its private state, then what came in."""
        private = self._private_of(round)
        self.bench.load(select(private, lambda name: not name.startswith(OPTIMIZER)))
        self.bench.load(shared)
        if not to_train:
            return
        keep_moments = not self.training.reset_optimizer
        moments = select(private, starting_with(OPTIMIZER)) if keep_moments else {}
        self.bench.load_optimizer_state(moments)
        if self.training.norm_buffers == "reset":
            _reset_running_statistics(self.bench.model)

    def _private_of(self, round: int) -> Weights:
        if round == 0:
            return select(self.first_weights(), self._uses)
        return self._state.load(round)[0]

    def _private_state(self) -> Weights:
        stays = self.bench.weights(lambda name: self._uses(name) and not self.travels(name))
        return stays | self.bench.optimizer_state(self._uses)

    def _evaluate(self, request: Evaluate) -> Reply:
        split = cast(Split, request.split)
        examples = self.task.evaluation_examples(self.cohorts, split)
        self._sit_down(request.round, request.weights, to_train=False)
        scores = scored(self.bench, self.task, examples)
        if request.cases and self.shows_images:
            self._show(examples, scores)
        return Reply(
            site=self.name,
            round=request.round,
            cases=len(scores),
            metrics=self.task.summary(scores),
            scores=scores if request.cases else (),
        )

    def _show(self, examples: Examples, scores: tuple[CaseScore, ...]) -> None:
        """Keep the report's pictures in this site's own folder: they are no part of a reply."""
        for site, made in panels(self.bench, self.task, examples, scores).items():
            save_panels(self.folder.parent / site / "panels.npz", made)

    def _finish(self, request: Finish) -> Reply:
        for name, round in {"private": request.best, "private-last": request.round}.items():
            stays = select(self._private_of(round), lambda n: not n.startswith(OPTIMIZER))
            own = select(stays, lambda n: not self.travels(n))
            write(
                self.folder / f"{name}.safetensors", own, {"site": self.name, "round": str(round)}
            )
        return Reply(site=self.name, round=request.round)


def _same(reply: Reply) -> Reply:
    return reply


@contextmanager
def _own_randomness(seed: int) -> Generator[None, None, None]:
    """Seed what cannot be given a generator (dropout), and put the global state back afterwards."""
    with torch.random.fork_rng():  # pyright: ignore[reportUnknownMemberType]
        torch.manual_seed(seed)  # pyright: ignore[reportUnknownMemberType]
        yield


def _reset_running_statistics(model: nn.Module) -> None:
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):  # pyright: ignore[reportPrivateUsage]
            module.reset_running_stats()
