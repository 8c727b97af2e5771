"""One round's training at a site, by the plan of its method."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from grandrounds.algorithms.aggregation import CONTROL, UPLOAD
from grandrounds.core.messages import Train
from grandrounds.core.weights import Weights, with_prefix, without_prefix
from grandrounds.site.gradient_terms import (
    ContrastiveTerm,
    ControlVariate,
    GradientTerm,
    ProximalTerm,
)
from grandrounds.site.model_state import (
    MEMORY,
    PERSONAL,
    SiteModel,
    model_tensors,
    personal_tensors,
)
from grandrounds.site.training import BatchSource, TrainingResult, isolated_rng, train


@dataclass(frozen=True)
class LocalRound:
    """One round at a site's desk, as a request orders it."""

    desk: SiteModel
    request: Train

    def train(self) -> tuple[TrainingResult, Weights, Weights]:
        """Train; give what came of it, what may leave, and what stays."""
        desk, plan = self.desk, self.request.plan
        private = desk.private_of(self.request.since)
        came = desk.incoming(self.request)
        desk.load_for_training(private | came)
        control = ControlVariate(
            desk.site.travels, without_prefix(CONTROL, private), without_prefix(CONTROL, came)
        )
        others = _uploads(private | came)
        lesson = desk.site.lesson(self.request.round)
        task = lesson.task.with_memory(without_prefix(MEMORY, private))
        trained = self._follow(replace(lesson, task=task), came, control, others)
        controls = with_prefix(CONTROL, control.learned())
        shared = desk.shared(with_moments=plan.carries) | controls
        stays = desk.private() | controls | with_prefix(MEMORY, task.memory)
        if plan.contrast and plan.negatives == "own":
            stays |= with_prefix(UPLOAD, shared)
        if plan.personal is not None:
            stays |= with_prefix(PERSONAL, self._personal(plan.personal, private, came))
        return trained, shared, stays

    def _follow(
        self, lesson: BatchSource, came: Weights, control: ControlVariate, others: Sequence[Weights]
    ) -> TrainingResult:
        """Train the shared model as the plan says."""
        desk, plan, travels = self.desk, self.request.plan, self.desk.site.travels
        nudges = list[GradientTerm]()
        if plan.prox:
            nudges.append(ProximalTerm(plan.prox, model_tensors(came)))
        if plan.controls:
            nudges.append(control)
        if plan.contrast and others:
            nudges.append(ContrastiveTerm(plan.contrast, model_tensors(came), others))
        batches = lesson.batches(epochs=plan.epochs, steps=plan.steps)
        if not plan.private_epochs:
            return train(desk.bench, lesson, batches, nudges=nudges)
        with desk.bench.train_only(lambda name: not travels(name)):
            train(desk.bench, lesson, lesson.batches(epochs=plan.private_epochs))
        with desk.bench.train_only(travels):
            return train(desk.bench, lesson, batches, nudges=nudges)

    def _personal(self, strength: float, private: Weights, came: Weights) -> Weights:
        """Train the site's own model beside the shared one, as if alone but for the pull."""
        desk, plan = self.desk, self.request.plan
        desk.load_for_training(personal_tensors(private) if self.request.since else private)
        pull = ProximalTerm(strength, model_tensors(came))
        # Its examples and draws begin anew, so that it is trained as if it were the only model.
        with isolated_rng(desk.site.answer_seed(self.request)):
            lesson = desk.site.lesson(self.request.round)
            batches = lesson.batches(epochs=plan.epochs, steps=plan.steps)
            train(desk.bench, lesson, batches, nudges=[pull] if strength else [])
        return desk.all_weights() | desk.bench.optimizer_state(desk.site.uses)


def _uploads(tensors: Weights) -> list[Weights]:
    """Give what sites sent in the last round, each by itself; a site's own has no site's name."""
    found = without_prefix(UPLOAD, tensors)
    sites = dict.fromkeys(name.rpartition("/")[0] for name in found)
    return [
        {n.rpartition("/")[2]: t for n, t in found.items() if n.rpartition("/")[0] == site}
        for site in sites
    ]
