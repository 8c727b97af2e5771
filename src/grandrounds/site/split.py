"""A site runs its part of a split network in turns, each of which takes several requests."""

import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import TypeAlias, cast

import torch
from torch import Tensor

from grandrounds.algorithms.policy import CUT, LABEL
from grandrounds.core.device import autocast
from grandrounds.core.messages import Backward, CaseScore, Forward, Reply, Tail
from grandrounds.core.weights import Weights, num_bytes, to_cpu, with_prefix, without_prefix
from grandrounds.data.cohort import SplitName
from grandrounds.site.cut import (
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
    """When a turn began, and how many bytes it has sent and received since."""

    began: float = field(default_factory=time.perf_counter)
    sent: int = 0
    received: int = 0

    def add(self, received: Weights, sent: Weights) -> None:
        """Add the bytes of an exchange."""
        self.received += num_bytes(received)
        self.sent += num_bytes(sent)

    def complete(self, reply: Reply) -> Reply:
        """Return the reply that ends the turn, with its time and bytes."""
        seconds = time.perf_counter() - self.began
        sent = self.sent + num_bytes(reply.weights)
        return replace(reply, seconds=seconds, sent=sent, received=self.received)


@dataclass
class TrainingTurn:
    """A turn of training: the batches to come, and the graph that waits for its gradients."""

    trainer: Trainer
    task: Task
    cut: Cut
    opening: Forward
    batches: Iterator[Batch]
    steps: int
    traffic: TurnTraffic = field(default_factory=TurnTraffic)
    _batch: Batch = field(default_factory=dict[str, Tensor])
    _outputs: Weights = field(default_factory=dict[str, Tensor])
    _part: str = WHOLE
    _totals: dict[str, list[Tensor]] = field(default_factory=dict[str, list[Tensor]])

    def forward(self) -> Weights:
        """Run the head on the next batch, and return what crosses the cut."""
        trainer = self.trainer
        trainer.model.zero_grad()
        self._batch = trainer.to_device(next(self.batches))
        with autocast(trainer.device, trainer.precision):
            self._outputs = self.task.run(
                trainer.model, self.cut.head, self.task.inputs(self._batch)
            )
        labels = labels_of(self.task, self._batch) if self.cut.labels == "server" else {}
        return with_prefix(CUT, to_cpu(self._outputs)) | with_prefix(LABEL, to_cpu(labels))

    def tail(self, received: Weights) -> Weights:
        """Run the tail and compute the losses; return the gradients of what was received.

        Critics step here. The network's part waits for the gradients of its head, and steps once.
        """
        trainer = self.trainer
        leaves = leaves_from(received, trainer.device)
        with autocast(trainer.device, trainer.precision):
            output = self.task.run(trainer.model, self.cut.tail, leaves)["output"]
        losses = self.task.losses_of_output(trainer.model, output, self._batch)
        for part, loss in trainer.under_autocast(losses):
            self._train_part(part, loss)
        return with_prefix(CUT, leaf_gradients(leaves))

    def _train_part(self, part: str, loss: Tensor) -> None:
        self._totals.setdefault(part, []).append(loss.detach())
        if any(self.cut.staged(name) for name in self.trainer.parameters(part)):
            self._part = part
            loss.backward()  # pyright: ignore[reportUnknownMemberType]
        else:
            step(self.trainer, part, loss)

    def backward(self, received: Weights) -> None:
        """Backpropagate through the head, and take the optimiser step of the network's part."""
        backpropagate(self._outputs, received)
        self.trainer.optimizer(self._part).step()

    def losses(self) -> dict[str, float]:
        """Return the mean losses so far. Raises `FloatingPointError` if one is not finite."""
        return means(self._totals)


@dataclass
class EvaluationTurn:
    """A turn of evaluation: the batches to come, and the scores so far."""

    trainer: Trainer
    task: Task
    cut: Cut
    examples: Examples
    chunks: Iterator[range]
    steps: int
    pictured: tuple[int, ...] = ()
    traffic: TurnTraffic = field(default_factory=TurnTraffic)
    scores: list[CaseScore] = field(default_factory=list[CaseScore])
    pictures: dict[int, Picture] = field(default_factory=dict[int, Picture])
    _chunk: range = range(0)
    _batch: Batch = field(default_factory=dict[str, Tensor])

    @torch.no_grad()
    def forward(self) -> Weights:
        """Run the head on the next cases, if there are any, and return what crosses the cut."""
        self._chunk = next(self.chunks, range(0))
        if not self._chunk:
            return {}
        self._batch = self.trainer.to_device(self.examples.batch(self._chunk, None))
        inputs = self.task.inputs(self._batch)
        return with_prefix(CUT, to_cpu(self.task.run(self.trainer.model, self.cut.head, inputs)))

    @torch.no_grad()
    def tail(self, received: Weights) -> Weights:
        """Run the tail and score its output, which stays at the site."""
        inputs = {n: t.to(self.trainer.device) for n, t in without_prefix(CUT, received).items()}
        output = self.task.run(self.trainer.model, self.cut.tail, inputs)["output"]
        prediction = self.task.to_prediction(output)
        self.scores += case_scores(self.task, self.examples, self._chunk, prediction, self._batch)
        rows = len(prediction) // len(self._chunk)
        for index in set(self.pictured) & set(self._chunk):
            first = (index - self._chunk.start) * rows
            self._picture(index, prediction[first : first + rows])
        return {}

    def _picture(self, index: int, prediction: Tensor) -> None:
        example = self.trainer.to_device(self.examples.batch([index], None))
        self.pictures[index] = self.task.picture(prediction, example)


Turn: TypeAlias = TrainingTurn | EvaluationTurn
SplitRequest: TypeAlias = Forward | Tail | Backward


@dataclass(frozen=True)
class PrivateState:
    """What stays at the site after a turn of training, and the older rounds to keep on disk."""

    private: Weights
    rounds: set[int]


@dataclass
class SplitTurns:
    """Answers the requests of a site's turns at a cut network, one turn at a time."""

    site_model: SiteModel
    cut: Cut
    _turn: Turn | None = None

    def answer(self, request: SplitRequest) -> tuple[Reply, PrivateState | None]:
        """Do one step of a turn; the last step of training also returns what must be saved."""
        if isinstance(request, Forward) and request.step == 0:
            self._turn = self._begin(request)
        turn = self._turn
        assert turn is not None, "a turn begins with step 0"
        weights = _step(turn, request)
        turn.traffic.add(request.weights, weights)
        if isinstance(request, Backward) and request.last:
            return self._end_training(request)
        site, round = self.site_model.site.name, request.round
        return Reply(site=site, round=round, steps=turn.steps, weights=weights), None

    def end_evaluation(self) -> EvaluationTurn:
        """End a turn of evaluation, and return it with its scores."""
        turn, self._turn = self._turn, None
        assert isinstance(turn, EvaluationTurn)
        return turn

    def _begin(self, request: Forward) -> Turn:
        tensors = self.site_model.private_of(request.since) | request.weights
        if request.split == "train":
            return self._begin_training(request, tensors)
        return self._begin_evaluation(request, tensors)

    def _begin_training(self, request: Forward, tensors: Weights) -> TrainingTurn:
        site_model, site = self.site_model, self.site_model.site
        site_model.load_for_training(tensors)
        site_model.trainer.set_rate(site.learning_rate(request.round))
        site_model.trainer.model.train()
        source = site.batch_source(request.round)
        batches = source.batches(epochs=site.training.epochs)
        count = source.num_batches(epochs=site.training.epochs)
        return TrainingTurn(site_model.trainer, site.task, self.cut, request, batches, count)

    def _begin_evaluation(self, request: Forward, tensors: Weights) -> EvaluationTurn:
        trainer, site = self.site_model.trainer, self.site_model.site
        trainer.load(model_tensors(tensors))
        trainer.model.eval()
        examples = site.cases(cast(SplitName, request.split))
        chunks = evaluation_batches(site.task, examples)
        pictured = panel_examples(examples) if request.cases and site.shows_images else ()
        return EvaluationTurn(
            trainer, site.task, self.cut, examples, iter(chunks), len(chunks), pictured
        )

    def _end_training(self, request: Backward) -> tuple[Reply, PrivateState]:
        """End a turn of training: return the reply with what is shared, and the private state."""
        turn, self._turn = self._turn, None
        assert isinstance(turn, TrainingTurn)
        reply = Reply(
            site=self.site_model.site.name,
            round=request.round,
            steps=turn.steps,
            metrics=turn.losses() | dict(request.losses),
            weights=self.site_model.shared(),
        )
        rounds = {turn.opening.keep, turn.opening.since}
        return turn.traffic.complete(reply), PrivateState(self.site_model.private(), rounds)


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
