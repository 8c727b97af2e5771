"""A site trains for one round as its method says, and what may leave is selected here."""

from collections.abc import Generator, Iterator
from contextlib import contextmanager
from typing import Literal

import torch
from torch import Tensor, nn

from grandrounds.algorithms.method import GradientTerm, Update
from grandrounds.core.errors import BadUpdate
from grandrounds.core.messages import Train
from grandrounds.core.weights import (
    OPTIMIZER,
    Filter,
    Weights,
    digest,
    select,
    unaliased,
    with_prefix,
    without_prefix,
)
from grandrounds.privacy.guard import GUARD, Departure
from grandrounds.site.evaluation import Evaluator
from grandrounds.site.model_state import (
    MEMORY,
    SiteModel,
    model_tensors,
    optimizer_tensors,
)
from grandrounds.site.record_training import RecordLoop
from grandrounds.site.releases import SPENT, RoundReleases, spent_before
from grandrounds.site.training import TrainingLoop, TrainingResult, parameter_of


class SiteRound:
    """One round of training of a site's model: the `LocalRound` that its method is given."""

    def __init__(self, site_model: SiteModel, request: Train) -> None:
        self._site_model = site_model
        self._request = request
        self._private = site_model.private_of(request.since)
        self._arrived = site_model.incoming(request)
        self._task = site_model.site.task.with_memory(without_prefix(MEMORY, self._private))
        self._trained = TrainingResult({}, 0)
        self._untouched = True
        site_model.load_for_training(self._private | self._arrived)
        self._releases = self._new_releases()
        self._loop = self._new_loop()

    def _new_releases(self) -> RoundReleases | None:
        """Begin to count what this round reveals, where the study has differential privacy."""
        site = self._site_model.site
        if site.privacy is None:
            return None
        start = digest(self._private) + digest(self._arrived)
        before = spent_before(self._private)
        releases = RoundReleases(site.privacy, site.data_digest, self.round, start, before)
        if site.privacy.kind == "client":
            releases.begin(1, sampling=1.0, model="")
        return releases

    def _new_loop(self) -> TrainingLoop | RecordLoop:
        """Return a loop over the round's batches, whose order starts anew.

        What the task remembers belongs to the first model that a round trains.
        """
        site = self._site_model.site
        task = self._task if self._untouched else site.task
        releases = self._releases
        if releases and releases.privacy.kind == "record":
            trainer = self._site_model.trainer
            return RecordLoop(trainer, task, site.lots, releases, site.uses)
        return TrainingLoop(self._site_model.trainer, site.batch_source(self._request.round, task))

    @property
    def round(self) -> int:
        """Return the round's number, counted from 1."""
        return self._request.round

    @property
    def start(self) -> Weights:
        return model_tensors(self._arrived)

    @property
    def first(self) -> Weights:
        return self._site_model.private_of(0)

    @property
    def travels(self) -> Filter:
        return self._site_model.site.travels

    @property
    def network(self) -> nn.Module:
        return self._site_model.trainer.model

    def received(self, name: str) -> Weights:
        return without_prefix(f"{name}/", self._arrived)

    def kept(self, name: str) -> Weights:
        return without_prefix(f"{name}/", self._private)

    def train(
        self,
        *terms: GradientTerm,
        only: Literal["all", "shared", "private"] = "all",
        epochs: int = 0,
    ) -> Update:
        with self._training(only):
            for batch in self.batches(epochs=epochs):
                for part, loss in self.losses(batch):
                    self.step(part, loss, *terms)
        return self.update()

    @contextmanager
    def _training(self, only: Literal["all", "shared", "private"]) -> Generator[None, None, None]:
        """Let only what travels be trained, or only what stays."""
        if only == "all":
            yield
            return
        shared = self.travels
        trained: Filter = shared if only == "shared" else lambda name: not shared(name)
        with self._site_model.trainer.train_only(trained):
            yield

    def restart(self, model: Weights) -> None:
        site_model = self._site_model
        site_model.load_for_training(model)
        torch.manual_seed(site_model.site.answer_seed(self._request))  # pyright: ignore[reportUnknownMemberType]
        self._loop = self._new_loop()

    def validate(self) -> float | None:
        return Evaluator(self._site_model).validation_score()

    def batches(self, *, epochs: int = 0) -> Iterator[dict[str, Tensor]]:
        self._untouched = False
        if epochs:
            return self._loop.batches(epochs=epochs)
        epochs = self._request.epochs or self._site_model.site.training.epochs
        return self._loop.batches(epochs=epochs, steps=self._request.steps)

    def losses(self, batch: dict[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
        return self._loop.losses(batch)

    def step(self, part: str, loss: Tensor, *terms: GradientTerm) -> None:
        self._loop.step(part, loss, terms)

    def update(self) -> Update:
        result = self._loop.result()
        site_model = self._site_model
        moments = site_model.trainer.optimizer_state(site_model.site.uses)
        return Update(site_model.all_weights() | moments, result.losses, result.steps)

    @property
    def epsilon(self) -> float | None:
        """Return what the run revealed so far; None where nothing bounds it."""
        return self._releases.epsilon if self._releases else None

    @property
    def exhausted(self) -> bool:
        """Tell whether the privacy budget of the site's data allows no further round."""
        return bool(self._releases) and self._releases.is_last

    def leaving(self, update: Update) -> Weights:
        """Return what leaves the site: of the model what is shared, and the sets that are named.

        Raises `BadUpdate` for a set that the method's sharing does not name, or that holds what
        must stay.
        """
        travels = self.travels
        leaves = select(model_tensors(update.model), travels)
        if self._site_model.site.moments_travel:
            moments = optimizer_tensors(update.model)
            leaves |= select(moments, lambda address: travels(parameter_of(address)))
        for name, tensors in update.sent.items():
            self._check_set(name, tensors)
            leaves |= with_prefix(f"{name}/", tensors)
        return unaliased(leaves)

    def departure(self, update: Update) -> Departure:
        """Return what leaves the site, with all that guards need to protect it."""
        site, guards = self._site_model.site, self._site_model.site.method.guards
        leaving = self.leaving(update)
        return Departure(
            site=site.name,
            round=self.round,
            roster=guards.roster(self.round),
            examples=len(site.training_examples),
            update=leaving,
            start=select(self.start, leaving.__contains__),
            kept=without_prefix(GUARD, self._private),
            seed=site.seed,
            secret=site.privacy.source.secret if site.privacy else b"",
        )

    def _check_set(self, name: str, tensors: Weights) -> None:
        method, network = self._site_model.site.method, self.network.state_dict()
        who = type(method).__name__
        for tensor in tensors:
            if name not in method.sharing().sends:
                raise BadUpdate(
                    f"{who} would send '{name}/{tensor}', which its sharing does not name in sends"
                )
            if tensor in network and not self.travels(tensor):
                raise BadUpdate(
                    f"{who} would send '{name}/{tensor}', whose tensor stays at the site"
                )

    def staying(self, update: Update) -> Weights:
        """Return what the site keeps: private weights, the optimiser's state, and kept sets.

        Raises `BadUpdate` for a set under a name that the house itself uses.
        """
        travels = self.travels
        stays = select(model_tensors(update.model), lambda name: not travels(name))
        stays |= optimizer_tensors(update.model) | with_prefix(MEMORY, self._task.memory)
        for name, tensors in update.kept.items():
            if f"{name}/" in (MEMORY, OPTIMIZER, GUARD, SPENT):
                who = type(self._site_model.site.method).__name__
                raise BadUpdate(f"{who} would keep a set '{name}', a name of the house's own")
            stays |= with_prefix(f"{name}/", tensors)
        return unaliased(stays | self._releases.kept if self._releases else stays)
