"""A site's part of a split network: what it does in a turn, from one request to the next."""

import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import TypeAlias, cast

import torch
from torch import Tensor

from grandrounds.core.device import autocast
from grandrounds.core.messages import Backward, CaseScore, Forward, Reply, Tail
from grandrounds.core.weights import Weights, num_bytes, to_cpu, with_prefix, without_prefix
from grandrounds.data.cohort import SplitName
from grandrounds.site.cut import (
    CUT,
    LABEL,
    WHOLE,
    Cut,
    backpropagate,
    labels_of,
    leaf_gradients,
    leaves_from,
)
from grandrounds.site.evaluation import case_scores, evaluation_batches, panel_examples
from grandrounds.site.model_state import SiteModel, model_tensors
from grandrounds.site.training import Trainer, means, step
from grandrounds.tasks.task import Batch, Examples, Picture, Task


@dataclass
class TurnTraffic:
    """When a turn began, and the bytes of what it has sent and received since."""

    began: float = field(default_factory=time.perf_counter)
    sent: int = 0
    received: int = 0

    def note(self, came: Weights, went: Weights) -> None:
        """Count an exchange."""
        self.received += num_bytes(came)
        self.sent += num_bytes(went)

    def signed(self, reply: Reply) -> Reply:
        """Put the whole turn's time and bytes into the reply that ends it."""
        seconds = time.perf_counter() - self.began
        sent = self.sent + num_bytes(reply.weights)
        return replace(reply, seconds=seconds, sent=sent, received=self.received)


@dataclass
class TrainingTurn:
    """A turn to train: the batches to come, and the graphs that wait for their gradients."""

    bench: Trainer
    task: Task
    cut: Cut
    opening: Forward
    batches: Iterator[Batch]
    steps: int
    tally: TurnTraffic = field(default_factory=TurnTraffic)
    _batch: Batch = field(default_factory=dict[str, Tensor])
    _made: Weights = field(default_factory=dict[str, Tensor])
    _part: str = WHOLE
    _totals: dict[str, list[Tensor]] = field(default_factory=dict[str, list[Tensor]])

    def forward(self) -> Weights:
        """Run the front on the next batch, and give what crosses the cut."""
        bench = self.bench
        bench.model.zero_grad()
        self._batch = bench.to_device(next(self.batches))
        with autocast(bench.device, bench.precision):
            self._made = self.task.run(bench.model, self.cut.head, self.task.inputs(self._batch))
        labels = labels_of(self.task, self._batch) if self.cut.labels == "server" else {}
        return with_prefix(CUT, to_cpu(self._made)) | with_prefix(LABEL, to_cpu(labels))

    def tail(self, came: Weights) -> Weights:
        """Run the end and judge its output; give the gradients of what came.

        Critics step here. The network's own part waits for the front's gradients, for one step.
        """
        bench = self.bench
        begun = leaves_from(came, bench.device)
        with autocast(bench.device, bench.precision):
            output = self.task.run(bench.model, self.cut.tail, begun)["output"]
        losses = self.task.losses_of_output(bench.model, output, self._batch)
        for part, loss in bench.under_autocast(losses):
            self._learn(part, loss)
        return with_prefix(CUT, leaf_gradients(begun))

    def _learn(self, part: str, loss: Tensor) -> None:
        self._totals.setdefault(part, []).append(loss.detach())
        if any(self.cut.staged(name) for name in self.bench.parameters(part)):
            self._part = part
            loss.backward()  # pyright: ignore[reportUnknownMemberType]
        else:
            step(self.bench, part, loss)

    def backward(self, came: Weights) -> None:
        """Backpropagate the front, and take the step of the network's own part."""
        backpropagate(self._made, came)
        self.bench.optimizer(self._part).step()

    def losses(self) -> dict[str, float]:
        """Give the mean losses so far. Raises `FloatingPointError` if one is not finite."""
        return means(self._totals)


@dataclass
class EvaluationTurn:
    """A turn to be scored: the batches to come, and the scores so far."""

    bench: Trainer
    task: Task
    cut: Cut
    examples: Examples
    chunks: Iterator[range]
    steps: int
    shown: tuple[int, ...] = ()
    tally: TurnTraffic = field(default_factory=TurnTraffic)
    scores: list[CaseScore] = field(default_factory=list[CaseScore])
    pictures: dict[int, Picture] = field(default_factory=dict[int, Picture])
    _chunk: range = range(0)
    _batch: Batch = field(default_factory=dict[str, Tensor])

    @torch.no_grad()
    def forward(self) -> Weights:
        """Run the front on the next cases, if there are any, and give what crosses the cut."""
        self._chunk = next(self.chunks, range(0))
        if not self._chunk:
            return {}
        self._batch = self.bench.to_device(self.examples.batch(self._chunk, None))
        inputs = self.task.inputs(self._batch)
        return with_prefix(CUT, to_cpu(self.task.run(self.bench.model, self.cut.head, inputs)))

    @torch.no_grad()
    def tail(self, came: Weights) -> Weights:
        """Run the end and score its output, which stays here."""
        placed = {n: t.to(self.bench.device) for n, t in without_prefix(CUT, came).items()}
        output = self.task.run(self.bench.model, self.cut.tail, placed)["output"]
        prediction = self.task.to_prediction(output)
        self.scores += case_scores(self.task, self.examples, self._chunk, prediction, self._batch)
        rows = len(prediction) // len(self._chunk)
        for index in set(self.shown) & set(self._chunk):
            first = (index - self._chunk.start) * rows
            self._picture(index, prediction[first : first + rows])
        return {}

    def _picture(self, index: int, prediction: Tensor) -> None:
        own = self.bench.to_device(self.examples.batch([index], None))
        self.pictures[index] = self.task.picture(prediction, own)


Turn: TypeAlias = TrainingTurn | EvaluationTurn
SplitRequest: TypeAlias = Forward | Tail | Backward


@dataclass(frozen=True)
class PrivateState:
    """What stays at the site when a turn to train has ended, and the older rounds to keep."""

    private: Weights
    rounds: set[int]


@dataclass
class SplitTurns:
    """A site's turns at a network that is cut, and the one that is under way."""

    desk: SiteModel
    cut: Cut
    _turn: Turn | None = None

    def take(self, request: SplitRequest) -> tuple[Reply, PrivateState | None]:
        """Do one step of a turn; with the last step of training comes what must be kept."""
        if isinstance(request, Forward) and request.step == 0:
            self._turn = self._begun(request)
        turn = self._turn
        assert turn is not None, "a turn begins with step 0"
        weights = _step(turn, request)
        turn.tally.note(request.weights, weights)
        if isinstance(request, Backward) and request.last:
            return self._learned(request)
        site, round = self.desk.site.name, request.round
        return Reply(site=site, round=round, steps=turn.steps, weights=weights), None

    def scored(self) -> EvaluationTurn:
        """End a turn to be scored."""
        turn, self._turn = self._turn, None
        assert isinstance(turn, EvaluationTurn)
        return turn

    def _begun(self, request: Forward) -> Turn:
        tensors = self.desk.private_of(request.since) | request.weights
        if request.split == "train":
            return self._learning(request, tensors)
        return self._scoring(request, tensors)

    def _learning(self, request: Forward, tensors: Weights) -> TrainingTurn:
        desk, site = self.desk, self.desk.site
        desk.load_for_training(tensors)
        desk.bench.set_rate(site.learning_rate(request.round))
        desk.bench.model.train()
        lesson = site.lesson(request.round)
        epochs, steps = request.plan.epochs, request.plan.steps
        batches = lesson.batches(epochs=epochs, steps=steps)
        count = lesson.num_batches(epochs=epochs, steps=steps)
        return TrainingTurn(desk.bench, site.task, self.cut, request, batches, count)

    def _scoring(self, request: Forward, tensors: Weights) -> EvaluationTurn:
        bench, site = self.desk.bench, self.desk.site
        bench.load(model_tensors(tensors))
        bench.model.eval()
        examples = site.cases(cast(SplitName, request.split))
        chunks = evaluation_batches(site.task, examples)
        seen = panel_examples(examples) if request.cases and site.shows_images else ()
        return EvaluationTurn(bench, site.task, self.cut, examples, iter(chunks), len(chunks), seen)

    def _learned(self, request: Backward) -> tuple[Reply, PrivateState]:
        """End a turn to train: send what is shared of this site's part, when the rest is kept."""
        turn, self._turn = self._turn, None
        assert isinstance(turn, TrainingTurn)
        reply = Reply(
            site=self.desk.site.name,
            round=request.round,
            steps=turn.steps,
            metrics=turn.losses() | dict(request.losses),
            weights=self.desk.shared(with_moments=turn.opening.plan.carries),
        )
        rounds = {turn.opening.keep, turn.opening.since}
        return turn.tally.signed(reply), PrivateState(self.desk.private(), rounds)


def _step(turn: Turn, request: SplitRequest) -> Weights:
    """Do one step of a turn, and return what goes across the cut."""
    match request:
        case Forward():
            return turn.forward()
        case Tail():
            return turn.tail(request.weights)
        case Backward():
            assert isinstance(turn, TrainingTurn)
            turn.backward(request.weights)
            return {}
