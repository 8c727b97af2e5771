"""One round's training at a site, by the plan of its method."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from grandrounds.algorithms.aggregation import CONTROL, UPLOAD
from grandrounds.core.messages import Train
from grandrounds.core.weights import Weights, below, named
from grandrounds.site.gradient_terms import Contrast, Control, Nudge, Pull
from grandrounds.site.model_state import MEMORY, PERSONAL, Desk, model_of, personal_of
from grandrounds.site.training import Lesson, Trained, own_randomness, train


@dataclass(frozen=True)
class LocalRound:
    """One round at a site's desk, as a request orders it."""

    desk: Desk
    request: Train

    def train(self) -> tuple[Trained, Weights, Weights]:
        """Train; give what came of it, what may leave, and what stays."""
        desk, plan = self.desk, self.request.plan
        private = desk.private_of(self.request.since)
        came = desk.came_in(self.request)
        desk.sit_down(private | came)
        control = Control(desk.site.travels, below(CONTROL, private), below(CONTROL, came))
        others = _uploads(private | came)
        lesson = desk.site.lesson(self.request.round)
        task = lesson.task.recalling(below(MEMORY, private))
        trained = self._follow(replace(lesson, task=task), came, control, others)
        controls = named(CONTROL, control.learned())
        shared = desk.shared(with_moments=plan.carries) | controls
        stays = desk.private() | controls | named(MEMORY, task.memory)
        if plan.contrast and plan.negatives == "own":
            stays |= named(UPLOAD, shared)
        if plan.personal is not None:
            stays |= named(PERSONAL, self._personal(plan.personal, private, came))
        return trained, shared, stays

    def _follow(
        self, lesson: Lesson, came: Weights, control: Control, others: Sequence[Weights]
    ) -> Trained:
        """Train the shared model as the plan says."""
        desk, plan, travels = self.desk, self.request.plan, self.desk.site.travels
        nudges = list[Nudge]()
        if plan.prox:
            nudges.append(Pull(plan.prox, model_of(came)))
        if plan.controls:
            nudges.append(control)
        if plan.contrast and others:
            nudges.append(Contrast(plan.contrast, model_of(came), others))
        batches = lesson.batches(epochs=plan.epochs, steps=plan.steps)
        if not plan.private_epochs:
            return train(desk.bench, lesson, batches, nudges=nudges)
        with desk.bench.training_only(lambda name: not travels(name)):
            train(desk.bench, lesson, lesson.batches(epochs=plan.private_epochs))
        with desk.bench.training_only(travels):
            return train(desk.bench, lesson, batches, nudges=nudges)

    def _personal(self, strength: float, private: Weights, came: Weights) -> Weights:
        """Train the site's own model beside the shared one, as if alone but for the pull."""
        desk, plan = self.desk, self.request.plan
        desk.sit_down(personal_of(private) if self.request.since else private)
        pull = Pull(strength, model_of(came))
        # Its examples and draws begin anew, so that it is trained as if it were the only model.
        with own_randomness(desk.site.answer_seed(self.request)):
            lesson = desk.site.lesson(self.request.round)
            batches = lesson.batches(epochs=plan.epochs, steps=plan.steps)
            train(desk.bench, lesson, batches, nudges=[pull] if strength else [])
        return desk.whole() | desk.bench.optimizer_state(desk.site.uses)


def _uploads(tensors: Weights) -> list[Weights]:
    """Give what sites sent in the last round, each by itself; a site's own has no site's name."""
    found = below(UPLOAD, tensors)
    sites = dict.fromkeys(name.rpartition("/")[0] for name in found)
    return [
        {n.rpartition("/")[2]: t for n, t in found.items() if n.rpartition("/")[0] == site}
        for site in sites
    ]
