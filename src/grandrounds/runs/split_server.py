"""The server trains its part of a split network here, in the coordinator's process."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor

from grandrounds.algorithms.policy import CUT, LABEL
from grandrounds.core.device import autocast
from grandrounds.core.errors import RunFailed
from grandrounds.core.seeds import seed_for
from grandrounds.core.weights import Filter, Weights, select, to_cpu, with_prefix, without_prefix
from grandrounds.site.cut import WHOLE, Cut, backpropagate, leaf_gradients, leaves_from
from grandrounds.site.training import Trainer, Training, isolated_rng, means, step
from grandrounds.tasks.task import Task


@dataclass
class SplitServer:
    """Runs the stages between the cuts, forwards and backwards; `build` makes its trainer.

    One optimiser steps the whole body: a part's parameters may lie on both sides of a cut.
    """

    task: Task
    cut: Cut
    travels: Filter
    training: Training
    rounds: int
    seed: int
    build: Callable[[], Trainer]
    _leaves: Weights = field(default_factory=dict[str, Tensor])
    _outputs: Weights = field(default_factory=dict[str, Tensor])
    _totals: dict[str, list[Tensor]] = field(default_factory=dict[str, list[Tensor]])

    @cached_property
    def _trainer(self) -> Trainer:
        return self.build()

    def holds(self, name: str) -> bool:
        """Tell whether the server holds a tensor."""
        return self.travels(name) and self.cut.at_server(name)

    def load(self, weights: Weights, moments: Weights, round: int) -> None:
        """Start a turn from these weights and this state of the optimiser."""
        self._trainer.load(select(weights, self.holds))
        keeps = not self.training.reset_optimizer
        self._trainer.load_optimizer_state(moments if keeps else {})
        self._trainer.set_rate(self.training.rate(round, self.rounds))
        self._totals.clear()

    def weights(self) -> Weights:
        """Return the weights of the server's part."""
        return self._trainer.weights(self.holds)

    def moments(self) -> Weights:
        """Return the state of the server's optimiser."""
        return self._trainer.optimizer_state(self.holds)

    def forward(self, received: Weights, site: str, round: int, batch: int) -> Weights:
        """Run the body on the output of a site's head, and return the input of the site's tail."""
        trainer = self._trainer
        trainer.model.train()
        self._leaves = leaves_from(received, trainer.device)
        seed = seed_for(self.seed, site, round, "server", batch)
        with isolated_rng(seed), autocast(trainer.device, trainer.precision):
            self._outputs = self.task.run(trainer.model, self.cut.body, self._leaves)
        return with_prefix(CUT, to_cpu(self._outputs))

    def backward(self, received: Weights) -> Weights:
        """Backpropagate the gradients from a site's tail, and step; return those for its head."""
        optimizer = self._trainer.optimizer(WHOLE)
        optimizer.zero_grad()
        backpropagate(self._outputs, received)
        optimizer.step()
        return with_prefix(CUT, leaf_gradients(self._leaves))

    def learn(self, received: Weights) -> Weights:
        """Compute losses from the labels received, and step; return the gradients for the head."""
        trainer = self._trainer
        labels = {
            name: tensor.to(trainer.device)
            for name, tensor in without_prefix(LABEL, received).items()
        }
        losses = self.task.losses_of_output(trainer.model, self._outputs["output"], labels)
        for part, loss in trainer.under_autocast(losses):
            step(trainer, WHOLE, loss)
            self._totals.setdefault(part, []).append(loss.detach())
        return with_prefix(CUT, leaf_gradients(self._leaves))

    def losses(self) -> Mapping[str, float]:
        """Return the turn's mean losses, where labels were received. Raises `RunFailed`."""
        try:
            return means(self._totals)
        except FloatingPointError as error:
            raise RunFailed(f"the server's part: {error}") from None

    @torch.no_grad()
    def predict(self, received: Weights) -> Weights:
        """Run the body in evaluation mode, in full precision."""
        model = self._trainer.model.eval()
        placed = {n: t.to(self._trainer.device) for n, t in without_prefix(CUT, received).items()}
        return with_prefix(CUT, to_cpu(self.task.run(model, self.cut.body, placed)))
