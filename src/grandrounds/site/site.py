"""A site's exam: its cases are scored with the model that it uses, and pictures of them kept."""

import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from typing import TypeAlias, assert_never, cast

import torch

from grandrounds.algorithms.methods import Method
from grandrounds.core.events import SiteReady
from grandrounds.core.failures import whole
from grandrounds.core.messages import (
    Adopt,
    Backward,
    CaseScore,
    Describe,
    Evaluate,
    Finish,
    Forward,
    Merge,
    Reply,
    Request,
    Tail,
    Train,
    Tune,
)
from grandrounds.core.run_folder import SiteFolder
from grandrounds.core.seeds import seed_for
from grandrounds.core.weights import Filter, Weights, digest, num_bytes
from grandrounds.data.cohort import Cohort, Split
from grandrounds.site.evaluation import Panel, panels, predicted, save_panels, scored
from grandrounds.site.local_round import LocalRound
from grandrounds.site.model_state import Desk, Kept
from grandrounds.site.peers import Mailbox, Peers
from grandrounds.site.split import Exchange, SitePart, Turns
from grandrounds.site.training import Bench, Lesson, Training, own_randomness, train
from grandrounds.tasks.task import Examples, Picture, Task


@dataclass(frozen=True)
class Exam:
    """What one site is scored on, and where.

    `cases` gives those of a split, `part` the site's part of a network that is split. Pictures go
    below the `folder` of all sites, if the site `shows_images`.
    """

    site: str
    task: Task
    desk: Desk
    cases: Callable[[Split], Examples]
    part: SitePart | None
    folder: Path
    shows_images: bool

    def take(self, request: Evaluate) -> Reply:
        """Score the model that a request is about, or end the turn in which it was scored."""
        if self.part:
            turn = self.part.scored()
            picture = turn.pictures.__getitem__
            return turn.tally.signed(self._judged(request, turn.examples, turn.scores, picture))
        desk, examples = self.desk, self.cases(cast(Split, request.split))
        desk.bench.load(desk.kept.tuned() if request.tuned else desk.own_model(request))
        scores = scored(desk.bench, self.task, examples)
        picture = partial(predicted, desk.bench, self.task, examples)
        return self._judged(request, examples, scores, picture)

    def trained(self) -> float | None:
        """Give the validation score of the model on the bench; none without cases."""
        scores = scored(self.desk.bench, self.task, self.cases("validation"))
        return self.task.summary(scores).get(self.task.metric)

    def _judged(
        self,
        request: Evaluate,
        examples: Examples,
        scores: Sequence[CaseScore],
        picture: Callable[[int], Picture],
    ) -> Reply:
        if request.cases and self.shows_images:
            self._show(panels(self.task, examples, scores, picture))
        return Reply(
            site=self.site,
            round=request.round,
            cases=len(scores),
            metrics=self.task.summary(scores),
            scores=tuple(scores) if request.cases else (),
        )

    def _show(self, panels: Mapping[str, Sequence[Panel]]) -> None:
        """Keep the report's pictures in this site's own folder: they are no part of a reply."""
        for site, made in panels.items():
            save_panels(SiteFolder(self.folder / site).panels, made)


Promise: TypeAlias = Callable[[], Reply]
Untrained: TypeAlias = Describe | Merge | Adopt | Tune | Evaluate | Finish


@dataclass(frozen=True)
class Site:
    """One hospital: its data, its task, its private state on its own disk.

    `travels` selects the tensors that may leave, `method` combines updates where this site leads.
    `first_weights` gives the model before any training; `bench` holds the model in memory and may
    be shared with other sites of the same process. `cohorts` is the site's own data (several only
    where a comparison pools them). `disk` keeps and fingerprints private state while the site, or
    another one, computes. `redact` takes out of a failure what only the site may know. `part` is
    the site's part of a network that is split.
    """

    name: str
    task: Task
    cohorts: tuple[Cohort, ...]
    training: Training
    rounds: int
    seed: int
    travels: Filter
    method: Method
    first_weights: Callable[[], Weights]
    bench: Bench
    folder: Path
    ready: SiteReady
    disk: Executor
    shows_images: bool = True
    redact: Callable[[str], str] = whole
    mailbox: Mailbox = field(default_factory=Mailbox)
    part: SitePart | None = None

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
        with own_randomness(self._seed(request)):
            promise = self._begin(request)
        seconds = time.perf_counter() - started
        return lambda: self._signed(promise(), seconds)

    def _signed(self, reply: Reply, seconds: float) -> Reply:
        sent = reply.sent or num_bytes(reply.weights)
        seconds = reply.seconds or seconds
        return replace(reply, examples=len(self._train), seconds=seconds, sent=sent)

    def _seed(self, request: Request) -> int:
        step = (request.step,) if isinstance(request, Forward | Tail) else ()
        return seed_for(self.seed, self.name, request.round, type(request).__name__, *step)

    def receive(self, update: Reply) -> None:
        """Take a peer's update, or a leader's merged model; only `Merge` and `Adopt` use it up."""
        self.mailbox.put(update)

    def _begin(self, request: Request) -> Promise:
        if isinstance(request, Train):
            return self._train_round(request)
        if isinstance(request, Forward | Tail | Backward):
            return self._take_turn(request)
        return partial(_same, self._answer(request))

    def _answer(self, request: Untrained) -> Reply:
        match request:
            case Describe():
                return self._describe()
            case Merge():
                return self._peers.merge(request)
            case Adopt():
                return self._peers.adopt(request)
            case Tune():
                return self._tune(request)
            case Evaluate():
                return self._exam.take(request)
            case Finish():
                return self._finish(request)
            case _:
                assert_never(request)

    def _describe(self) -> Reply:
        return Reply(site=self.name, round=0, rounds=self._desk.kept.held(), ready=self.ready)

    @cached_property
    def _train(self) -> Examples:
        return self.task.training_examples(self.cohorts)

    @cached_property
    def _uses(self) -> Filter:
        uses = self.task.uses(self.name)
        return self.part.cut.at_site(uses) if self.part else uses

    @cached_property
    def _desk(self) -> Desk:
        return Desk(
            self.name,
            self.bench,
            Kept(self.folder),
            self.training,
            self.method,
            self._uses,
            self.travels,
            self.first_weights,
        )

    def _cases(self, split: Split) -> Examples:
        return self.task.evaluation_examples(self.cohorts, split)

    def _rate(self, round: int) -> float:
        return self.training.rate(round, self.rounds)

    def _lesson(self, round: int) -> Lesson:
        seed = seed_for(self.seed, self.name, round, "batches")
        generator = torch.Generator().manual_seed(seed)
        return Lesson(self.task, self._train, self.training.batch_size, generator)

    def _train_round(self, request: Train) -> Promise:
        self.bench.set_rate(self._rate(request.round))
        lesson = partial(self._lesson, request.round)
        anew = partial(own_randomness, self._seed(request))
        trained, shared, stays = LocalRound(self._desk, request, lesson, anew).train()
        reply = Reply(
            site=self.name,
            round=request.round,
            steps=trained.steps,
            score=self._exam.trained() if request.plan.validates else None,
            metrics=trained.losses,
            weights=shared,
        )
        return self._kept_privately(reply, stays, {request.keep, request.since})

    def _kept_privately(self, reply: Reply, mine: Weights, keep: set[int]) -> Promise:
        """Promise a round's reply for when the disk has its private state."""
        kept = self.disk.submit(self._desk.kept.private.save, reply.round, mine, {}, keep)
        fingerprint = self.disk.submit(digest, mine)

        def promise() -> Reply:
            kept.result()
            return replace(reply, digest=fingerprint.result())

        return promise

    def _tune(self, request: Tune) -> Reply:
        """Fine-tune the whole model, all of it private from here on."""
        self._desk.sit_down(self._desk.own_model(request))
        self.bench.set_rate(self.training.learning_rate)
        lesson = self._lesson(request.round)
        trained = train(self.bench, lesson, lesson.batches(epochs=request.epochs))
        tuned = self._desk.whole()
        self._desk.kept.keep_tuned(tuned)
        metrics, steps = trained.losses, trained.steps
        return Reply(
            site=self.name, round=request.round, steps=steps, metrics=metrics, digest=digest(tuned)
        )

    @property
    def _peers(self) -> Peers:
        return Peers(self.name, self._desk, self.mailbox)

    @property
    def _exam(self) -> Exam:
        return Exam(
            self.name,
            self.task,
            self._desk,
            self._cases,
            self.part,
            self.folder.parent,
            self.shows_images,
        )

    @cached_property
    def _turns(self) -> Turns:
        assert self.part is not None, "only a study that cuts the network asks for this"
        return Turns(
            self.name,
            self.part,
            self._desk,
            self._lesson,
            self._rate,
            self._cases,
            self.shows_images,
        )

    def _take_turn(self, request: Exchange) -> Promise:
        reply, kept = self._turns.take(request)
        if kept is None:
            return partial(_same, reply)
        return self._kept_privately(reply, kept.private, kept.rounds)

    def _finish(self, request: Finish) -> Reply:
        self._desk.write_models({"": request.best, "-last": request.round})
        return Reply(site=self.name, round=request.round)


def _same(reply: Reply) -> Reply:
    return reply
