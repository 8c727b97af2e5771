"""A site's part of a split network: what it does in a turn, from one request to the next."""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import TypeAlias, cast

import torch
from torch import Tensor

from grandrounds.core.device import autocast
from grandrounds.core.messages import Backward, CaseScore, Forward, Reply, Tail
from grandrounds.core.weights import Weights, below, copied, named, num_bytes
from grandrounds.data.cohort import Split
from grandrounds.site.cut import CUT, LABEL, WHOLE, Cut, begun_at, go_back, gradients_at, labels_of
from grandrounds.site.evaluation import case_scores, chunks_of, shown
from grandrounds.site.model_state import Desk, model_of
from grandrounds.site.training import Bench, Lesson, means, step
from grandrounds.tasks.task import Batch, Examples, Picture, Task


@dataclass
class Tally:
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
class LearningTurn:
    """A turn to train: the batches to come, and the graphs that wait for their gradients."""

    bench: Bench
    task: Task
    cut: Cut
    opening: Forward
    batches: Iterator[Batch]
    steps: int
    tally: Tally = field(default_factory=Tally)
    _batch: Batch = field(default_factory=dict[str, Tensor])
    _made: Weights = field(default_factory=dict[str, Tensor])
    _part: str = WHOLE
    _totals: dict[str, list[Tensor]] = field(default_factory=dict[str, list[Tensor]])

    def forward(self) -> Weights:
        """Run the front on the next batch, and give what crosses the cut."""
        bench = self.bench
        bench.model.zero_grad()
        self._batch = bench.place(next(self.batches))
        with autocast(bench.device, bench.precision):
            self._made = self.task.run(bench.model, self.cut.front, self.task.inputs(self._batch))
        labels = labels_of(self.task, self._batch) if self.cut.labels == "server" else {}
        return named(CUT, copied(self._made)) | named(LABEL, copied(labels))

    def tail(self, came: Weights) -> Weights:
        """Run the end and judge its output; give the gradients of what came.

        Critics step here. The network's own part waits for the front's gradients, for one step.
        """
        bench = self.bench
        begun = begun_at(came, bench.device)
        with autocast(bench.device, bench.precision):
            output = self.task.run(bench.model, self.cut.end, begun)["output"]
        losses = self.task.judge(bench.model, output, self._batch)
        for part, loss in bench.under_autocast(losses):
            self._learn(part, loss)
        return named(CUT, gradients_at(begun))

    def _learn(self, part: str, loss: Tensor) -> None:
        self._totals.setdefault(part, []).append(loss.detach())
        if any(self.cut.staged(name) for name in self.bench.parameters(part)):
            self._part = part
            loss.backward()  # pyright: ignore[reportUnknownMemberType]
        else:
            step(self.bench, part, loss)

    def backward(self, came: Weights) -> None:
        """Backpropagate the front, and take the step of the network's own part."""
        go_back(self._made, came)
        self.bench.optimizer(self._part).step()

    def losses(self) -> dict[str, float]:
        """Give the mean losses so far. Raises `FloatingPointError` if one is not finite."""
        return means(self._totals)


@dataclass
class ScoringTurn:
    """A turn to be scored: the batches to come, and the scores so far."""

    bench: Bench
    task: Task
    cut: Cut
    examples: Examples
    chunks: Iterator[range]
    steps: int
    shown: tuple[int, ...] = ()
    tally: Tally = field(default_factory=Tally)
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
        self._batch = self.bench.place(self.examples.batch(self._chunk, None))
        inputs = self.task.inputs(self._batch)
        return named(CUT, copied(self.task.run(self.bench.model, self.cut.front, inputs)))

    @torch.no_grad()
    def tail(self, came: Weights) -> Weights:
        """Run the end and score its output, which stays here."""
        placed = {n: t.to(self.bench.device) for n, t in below(CUT, came).items()}
        output = self.task.run(self.bench.model, self.cut.end, placed)["output"]
        prediction = self.task.read(output)
        self.scores += case_scores(self.task, self.examples, self._chunk, prediction, self._batch)
        rows = len(prediction) // len(self._chunk)
        for index in set(self.shown) & set(self._chunk):
            first = (index - self._chunk.start) * rows
            self._picture(index, prediction[first : first + rows])
        return {}

    def _picture(self, index: int, prediction: Tensor) -> None:
        own = self.bench.place(self.examples.batch([index], None))
        self.pictures[index] = self.task.picture(prediction, own)


Turn: TypeAlias = LearningTurn | ScoringTurn


@dataclass
class SitePart:
    """A site's part of a split network, and the turn that is under way."""

    cut: Cut
    bench: Bench
    task: Task
    _turn: Turn | None = None

    def learn(self, opening: Forward, lesson: Lesson) -> None:
        """Begin a turn to train."""
        self.bench.model.train()
        epochs, steps = opening.plan.epochs, opening.plan.steps
        batches = lesson.batches(epochs=epochs, steps=steps)
        count = lesson.num_batches(epochs=epochs, steps=steps)
        self._turn = LearningTurn(self.bench, self.task, self.cut, opening, batches, count)

    def score(self, examples: Examples, *, pictures: bool) -> None:
        """Begin a turn to be scored."""
        self.bench.model.eval()
        chunks = chunks_of(self.task, examples)
        seen = shown(examples) if pictures else ()
        self._turn = ScoringTurn(
            self.bench, self.task, self.cut, examples, iter(chunks), len(chunks), seen
        )

    def exchange(self, request: Forward | Tail | Backward) -> tuple[int, Weights]:
        """Do one step of the turn; give how many batches it has, and what goes across the cut."""
        turn = self._turn
        assert turn is not None, "a turn begins with step 0"
        made = _answered(turn, request)
        turn.tally.note(request.weights, made)
        return turn.steps, made

    def learned(self) -> LearningTurn:
        """End a turn to train."""
        turn, self._turn = self._turn, None
        assert isinstance(turn, LearningTurn)
        return turn

    def scored(self) -> ScoringTurn:
        """End a turn to be scored."""
        turn, self._turn = self._turn, None
        assert isinstance(turn, ScoringTurn)
        return turn


def _answered(turn: Turn, request: Forward | Tail | Backward) -> Weights:
    match request:
        case Forward():
            return turn.forward()
        case Tail():
            return turn.tail(request.weights)
        case Backward():
            assert isinstance(turn, LearningTurn)
            turn.backward(request.weights)
            return {}


Exchange: TypeAlias = Forward | Tail | Backward


@dataclass(frozen=True)
class Kept:
    """What stays at the site when a turn to train has ended, and the older rounds to keep."""

    private: Weights
    rounds: set[int]


@dataclass(frozen=True)
class Turns:
    """How one site takes its turns.

    `lesson` begins a round's examples, `rate` gives its learning rate, `cases` those of a split;
    `pictures` says whether the site shows any.
    """

    site: str
    part: SitePart
    desk: Desk
    lesson: Callable[[int], Lesson]
    rate: Callable[[int], float]
    cases: Callable[[Split], Examples]
    pictures: bool

    def take(self, request: Exchange) -> tuple[Reply, Kept | None]:
        """Do one step of a turn; with the last step of training comes what must be kept."""
        if isinstance(request, Forward) and request.step == 0:
            self._begin(request)
        steps, weights = self.part.exchange(request)
        if isinstance(request, Backward) and request.last:
            return self._end(self.part.learned(), request)
        return Reply(site=self.site, round=request.round, steps=steps, weights=weights), None

    def _begin(self, request: Forward) -> None:
        tensors = self.desk.private_of(request.since) | request.weights
        if request.split == "train":
            self.desk.sit_down(tensors)
            self.desk.bench.set_rate(self.rate(request.round))
            self.part.learn(request, self.lesson(request.round))
        else:
            self.desk.bench.load(model_of(tensors))
            pictures = request.cases and self.pictures
            self.part.score(self.cases(cast(Split, request.split)), pictures=pictures)

    def _end(self, turn: LearningTurn, request: Backward) -> tuple[Reply, Kept]:
        """Send what is shared of this site's part, when the rest is kept."""
        reply = Reply(
            site=self.site,
            round=request.round,
            steps=turn.steps,
            metrics=turn.losses() | dict(request.losses),
            weights=self.desk.shared(with_moments=turn.opening.plan.carries),
        )
        rounds = {turn.opening.keep, turn.opening.since}
        return turn.tally.signed(reply), Kept(self.desk.private(), rounds)
