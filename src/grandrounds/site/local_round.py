"""A site trains for one round as the plan of its method says."""

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
    """One round of training of a site's model, as a request asks for it."""

    site_model: SiteModel
    request: Train

    def train(self) -> tuple[TrainingResult, Weights, Weights]:
        """Train; return the result, the tensors that leave the site, and those that stay."""
        site_model, plan = self.site_model, self.request.plan
        private = site_model.private_of(self.request.since)
        received = site_model.incoming(self.request)
        site_model.load_for_training(private | received)
        control = ControlVariate(
            site_model.site.travels,
            without_prefix(CONTROL, private),
            without_prefix(CONTROL, received),
        )
        others = _uploads(private | received)
        source = site_model.site.batch_source(self.request.round)
        task = source.task.with_memory(without_prefix(MEMORY, private))
        result = self._train_shared(replace(source, task=task), received, control, others)
        controls = with_prefix(CONTROL, control.learned())
        shared = site_model.shared(with_moments=plan.carries) | controls
        stays = site_model.private() | controls | with_prefix(MEMORY, task.memory)
        if plan.contrast and plan.negatives == "own":
            stays |= with_prefix(UPLOAD, shared)
        if plan.personal is not None:
            stays |= with_prefix(PERSONAL, self._train_personal(plan.personal, private, received))
        return result, shared, stays

    def _train_shared(
        self,
        source: BatchSource,
        received: Weights,
        control: ControlVariate,
        others: Sequence[Weights],
    ) -> TrainingResult:
        """Train the shared model, with the gradient terms of the plan."""
        plan, trainer = self.request.plan, self.site_model.trainer
        travels = self.site_model.site.travels
        terms = list[GradientTerm]()
        if plan.prox:
            terms.append(ProximalTerm(plan.prox, model_tensors(received)))
        if plan.controls:
            terms.append(control)
        if plan.contrast and others:
            terms.append(ContrastiveTerm(plan.contrast, model_tensors(received), others))
        batches = source.batches(epochs=plan.epochs, steps=plan.steps)
        if not plan.private_epochs:
            return train(trainer, source, batches, terms=terms)
        with trainer.train_only(lambda name: not travels(name)):
            train(trainer, source, source.batches(epochs=plan.private_epochs))
        with trainer.train_only(travels):
            return train(trainer, source, batches, terms=terms)

    def _train_personal(self, strength: float, private: Weights, received: Weights) -> Weights:
        """Train the personal model as the shared one was, with the proximal term in addition."""
        site_model, plan = self.site_model, self.request.plan
        site_model.load_for_training(personal_tensors(private) if self.request.since else private)
        pull = ProximalTerm(strength, model_tensors(received))
        # Its batches and draws start from their seeds again, as if it were the only model.
        with isolated_rng(site_model.site.answer_seed(self.request)):
            source = site_model.site.batch_source(self.request.round)
            batches = source.batches(epochs=plan.epochs, steps=plan.steps)
            train(site_model.trainer, source, batches, terms=[pull] if strength else [])
        return site_model.all_weights() | site_model.trainer.optimizer_state(site_model.site.uses)


def _uploads(tensors: Weights) -> list[Weights]:
    """Return what each site sent in the last round; what this one sent has no site in its names."""
    uploads = without_prefix(UPLOAD, tensors)
    sites = dict.fromkeys(name.rpartition("/")[0] for name in uploads)
    return [
        {n.rpartition("/")[2]: t for n, t in uploads.items() if n.rpartition("/")[0] == site}
        for site in sites
    ]
