"""Everything that one hospital does. An engine only decides how a request reaches `Site.answer`."""

import time
from collections.abc import Callable, Generator, Mapping, Sequence
from concurrent.futures import Executor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from typing import TypeAlias, assert_never, cast

import torch
from torch import nn

from grandrounds.bench import Bench
from grandrounds.checkpoints import State, flattened, unflattened
from grandrounds.data.case import Cohort, Split
from grandrounds.evaluation import Panel, panels, predicted, save_panels, scored
from grandrounds.events import SiteReady
from grandrounds.failures import whole
from grandrounds.kept import PERSONAL, Kept, model_of, moments_of, personal_of
from grandrounds.local_round import local_round
from grandrounds.mailbox import Mailbox
from grandrounds.messages import (
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
from grandrounds.methods.combine import CONTROL
from grandrounds.methods.method import Method
from grandrounds.nudges import Pull
from grandrounds.seeds import seed_for
from grandrounds.split_site import LearningTurn, SitePart
from grandrounds.tasks.task import Examples, Picture, Task
from grandrounds.training import Lesson, Training, train
from grandrounds.weights import Filter, Weights, digest, named, num_bytes, select

Promise: TypeAlias = Callable[[], Reply]
Exchange: TypeAlias = Forward | Tail | Backward
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
                return self._merge(request)
            case Adopt():
                return self._adopt(request)
            case Tune():
                return self._tune(request)
            case Evaluate():
                return self._evaluate(request)
            case Finish():
                return self._finish(request)
            case _:
                assert_never(request)

    def _describe(self) -> Reply:
        return Reply(site=self.name, round=0, rounds=self._kept.held(), ready=self.ready)

    @cached_property
    def _train(self) -> Examples:
        return self.task.training_examples(self.cohorts)

    @cached_property
    def _uses(self) -> Filter:
        uses = self.task.uses(self.name)
        return self.part.cut.at_site(uses) if self.part else uses

    @property
    def _kept(self) -> Kept:
        return Kept(self.folder)

    def _lesson(self, round: int) -> Lesson:
        seed = seed_for(self.seed, self.name, round, "batches")
        generator = torch.Generator().manual_seed(seed)
        return Lesson(self.task, self._train, self.training.batch_size, generator)

    def _train_round(self, request: Train) -> Promise:
        private = self._private_of(request.since)
        came = self._came_in(request)
        self._sit_down(private | came)
        self.bench.set_rate(self.training.rate(request.round, self.rounds))
        lesson = self._lesson(request.round)
        trained, control = local_round(
            self.bench, lesson, request.plan, self.travels, private, came
        )
        shared = self.bench.weights(self.travels) | named(CONTROL, control.learned())
        if request.plan.carries:
            shared |= self.bench.optimizer_state(self.travels)
        mine = self._private_state() | named(CONTROL, control.learned())
        if request.plan.personal is not None:
            mine |= named(PERSONAL, self._personal(request, private, came))
        reply = Reply(
            site=self.name,
            round=request.round,
            steps=trained.steps,
            metrics=trained.losses,
            weights=shared,
        )
        return self._kept_privately(reply, mine, {request.keep, request.since})

    def _kept_privately(self, reply: Reply, mine: Weights, keep: set[int]) -> Promise:
        """Promise a round's reply for when the disk has its private state."""
        kept = self.disk.submit(self._kept.private.save, reply.round, mine, {}, keep)
        fingerprint = self.disk.submit(digest, mine)

        def promise() -> Reply:
            kept.result()
            return replace(reply, digest=fingerprint.result())

        return promise

    def _came_in(self, request: Train | Evaluate | Tune) -> Weights:
        """Give what the request brought, or the merged model that this site holds itself."""
        if request.weights:
            return request.weights
        return self.method.broadcast(self._merged(request.since))

    def _merged(self, round: int) -> State:
        """Give the merged model of a round; before the first it is what all sites start from."""
        first = State(select(self.first_weights(), self.travels))
        return self._kept.merged(round) if round and first.weights else first

    def _sit_down(self, tensors: Weights) -> None:
        """Put a model on the bench to train: weights, and the optimiser's state if it lasts."""
        self.bench.load(model_of(tensors))
        keeps = not self.training.reset_optimizer
        self.bench.load_optimizer_state(moments_of(tensors) if keeps else {})
        if self.training.norm_buffers == "reset":
            _reset_running_statistics(self.bench.model)

    def _private_of(self, round: int) -> Weights:
        if round == 0:
            return select(self.first_weights(), self._uses)
        return self._kept.private.load(round)[0]

    def _private_state(self) -> Weights:
        stays = self.bench.weights(lambda name: self._uses(name) and not self.travels(name))
        return stays | self.bench.optimizer_state(self._uses)

    def _personal(self, request: Train, private: Weights, came: Weights) -> Weights:
        """Train the site's own model beside the shared one, as if alone but for the pull."""
        assert request.plan.personal is not None
        own = personal_of(private) if request.since else private
        self._sit_down(own)
        pull = Pull(request.plan.personal, model_of(came))
        with own_randomness(self._seed(request)):
            lesson = self._lesson(request.round)
            batches = lesson.batches(epochs=request.plan.epochs, steps=request.plan.steps)
            train(self.bench, lesson, batches, nudges=[pull] if pull.strength else [])
        return self.bench.weights(self._uses) | self.bench.optimizer_state(self._uses)

    def _merge(self, request: Merge) -> Reply:
        """Lead: combine what the peers delivered."""
        updates = self.mailbox.updates(request.peers, request.round)
        merged = self.method.combine(self._merged(request.since), updates)
        return Reply(
            site=self.name,
            round=request.round,
            merged=len(updates),
            received=sum(num_bytes(u.weights) for u in updates if u.site != self.name),
            shared=merged.fingerprint,
            weights=flattened(merged),
        )

    def _adopt(self, request: Adopt) -> Reply:
        """Keep the leader's merged model; what else was delivered is of no use any more."""
        merged = self.mailbox.merged(request.leader, request.round)
        state = unflattened(merged.weights, request.round)
        self._kept.keep_merged(state, request.keep)
        received = 0 if request.leader == self.name else num_bytes(merged.weights)
        shared = state.fingerprint
        return Reply(site=self.name, round=request.round, shared=shared, received=received)

    def _tune(self, request: Tune) -> Reply:
        """Fine-tune the whole model, all of it private from here on."""
        self._sit_down(self._own_model(request))
        self.bench.set_rate(self.training.learning_rate)
        lesson = self._lesson(request.round)
        trained = train(self.bench, lesson, lesson.batches(epochs=request.epochs))
        tuned = self.bench.weights(self._uses)
        self._kept.keep_tuned(tuned)
        metrics, steps = trained.losses, trained.steps
        return Reply(
            site=self.name, round=request.round, steps=steps, metrics=metrics, digest=digest(tuned)
        )

    def _own_model(self, request: Evaluate | Tune) -> Weights:
        """Give the model that this site uses: private and shared, or its personal one."""
        private = self._private_of(request.since)
        return model_of(private | self._came_in(request) | model_of(personal_of(private)))

    def _evaluate(self, request: Evaluate) -> Reply:
        if self.part:
            turn = self.part.scored()
            picture = turn.pictures.__getitem__
            return turn.tally.signed(self._judged(request, turn.examples, turn.scores, picture))
        split = cast(Split, request.split)
        examples = self.task.evaluation_examples(self.cohorts, split)
        self.bench.load(self._kept.tuned() if request.tuned else self._own_model(request))
        scores = scored(self.bench, self.task, examples)
        picture = partial(predicted, self.bench, self.task, examples)
        return self._judged(request, examples, scores, picture)

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
            site=self.name,
            round=request.round,
            cases=len(scores),
            metrics=self.task.summary(scores),
            scores=tuple(scores) if request.cases else (),
        )

    def _show(self, panels: Mapping[str, Sequence[Panel]]) -> None:
        """Keep the report's pictures in this site's own folder: they are no part of a reply."""
        for site, made in panels.items():
            save_panels(self.folder.parent / site / "panels.npz", made)

    def _take_turn(self, request: Exchange) -> Promise:
        """Do one step of a turn over a split network, from the first to the last."""
        assert self.part is not None, "only a study that cuts the network asks for this"
        if isinstance(request, Forward) and request.step == 0:
            self._begin_turn(self.part, request)
        steps, weights = self.part.exchange(request)
        if isinstance(request, Backward) and request.last:
            return self._end_turn(self.part.learned(), request)
        name, round = self.name, request.round
        return partial(_same, Reply(site=name, round=round, steps=steps, weights=weights))

    def _begin_turn(self, part: SitePart, request: Forward) -> None:
        tensors = self._private_of(request.since) | request.weights
        if request.split == "train":
            self._sit_down(tensors)
            self.bench.set_rate(self.training.rate(request.round, self.rounds))
            part.learn(request, self._lesson(request.round))
        else:
            self.bench.load(model_of(tensors))
            split = cast(Split, request.split)
            examples = self.task.evaluation_examples(self.cohorts, split)
            part.score(examples, pictures=request.cases and self.shows_images)

    def _end_turn(self, turn: LearningTurn, request: Backward) -> Promise:
        """Send what is shared of this site's part, when the rest is kept."""
        shared = self.bench.weights(self.travels)
        if turn.opening.plan.carries:
            shared |= self.bench.optimizer_state(self.travels)
        losses = turn.losses() | dict(request.losses)
        reply = Reply(
            site=self.name, round=request.round, steps=turn.steps, metrics=losses, weights=shared
        )
        keep = {turn.opening.keep, turn.opening.since}
        return self._kept_privately(turn.tally.signed(reply), self._private_state(), keep)

    def _finish(self, request: Finish) -> Reply:
        for name, round in {"": request.best, "-last": request.round}.items():
            private = self._private_of(round)
            own = select(model_of(private), lambda n: not self.travels(n))
            self._kept.write_model(name, round, own | model_of(personal_of(private)))
        return Reply(site=self.name, round=request.round)


def _same(reply: Reply) -> Reply:
    return reply


@contextmanager
def own_randomness(seed: int) -> Generator[None, None, None]:
    """Seed what cannot be given a generator (dropout), and put the global state back afterwards."""
    with torch.random.fork_rng():  # pyright: ignore[reportUnknownMemberType]
        torch.manual_seed(seed)  # pyright: ignore[reportUnknownMemberType]
        yield


def _reset_running_statistics(model: nn.Module) -> None:
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):  # pyright: ignore[reportPrivateUsage]
            module.reset_running_stats()
