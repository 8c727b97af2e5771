"""A site's exam: its cases are scored with the model that it uses, and pictures of them kept."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import cast

from grandrounds.data.case import Split
from grandrounds.desk import Desk
from grandrounds.evaluation import Panel, panels, predicted, save_panels, scored
from grandrounds.messages import CaseScore, Evaluate, Reply
from grandrounds.split_site import SitePart
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
            save_panels(self.folder / site / "panels.npz", made)
