"""A site's turns over a split network: begun from what came, ended with what leaves and stays."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias, cast

from grandrounds.data.case import Split
from grandrounds.desk import Desk
from grandrounds.kept import model_of
from grandrounds.messages import Backward, Forward, Reply, Tail
from grandrounds.split_site import LearningTurn, SitePart
from grandrounds.tasks.task import Examples
from grandrounds.training import Lesson
from grandrounds.weights import Weights

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
