"""The server trains its part of a split network here, in the coordinator's process."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor

from grandrounds.core.device import autocast
from grandrounds.core.errors import RunFailed
from grandrounds.core.seeds import seed_for
from grandrounds.core.weights import Filter, Weights, select, to_cpu, with_prefix, without_prefix
from grandrounds.site.cut import CUT, LABEL, WHOLE, Cut, backpropagate, leaf_gradients, leaves_from
from grandrounds.site.training import Trainer, Training, isolated_rng, means, step
from grandrounds.tasks.task import Task


@dataclass
class SplitServer:
    """Runs the stages between the cuts, forwards and backwards; `build` makes its bench.

    Its optimiser knows no parts of the network: a part's parameters may lie on both sides.
    """

    task: Task
    cut: Cut
    travels: Filter
    training: Training
    rounds: int
    seed: int
    build: Callable[[], Trainer]
    _begun: Weights = field(default_factory=dict[str, Tensor])
    _made: Weights = field(default_factory=dict[str, Tensor])
    _totals: dict[str, list[Tensor]] = field(default_factory=dict[str, list[Tensor]])

    @cached_property
    def _bench(self) -> Trainer:
        return self.build()

    def holds(self, name: str) -> bool:
        """Tell whether a tensor is the server's."""
        return self.travels(name) and self.cut.at_server(name)

    def load(self, weights: Weights, moments: Weights, round: int) -> None:
        """Begin a turn from these weights and this state of the optimiser."""
        self._bench.load(select(weights, self.holds))
        keeps = not self.training.reset_optimizer
        self._bench.load_optimizer_state(moments if keeps else {})
        self._bench.set_rate(self.training.rate(round, self.rounds))
        self._totals.clear()

    def weights(self) -> Weights:
        """Give the server's part."""
        return self._bench.weights(self.holds)

    def moments(self) -> Weights:
        """Give the state of its optimiser."""
        return self._bench.optimizer_state(self.holds)

    def forward(self, came: Weights, site: str, round: int, batch: int) -> Weights:
        """Run the server's stages on what came from a site's front; give what goes to its end."""
        bench = self._bench
        bench.model.train()
        self._begun = leaves_from(came, bench.device)
        seed = seed_for(self.seed, site, round, "server", batch)
        with isolated_rng(seed), autocast(bench.device, bench.precision):
            self._made = self.task.run(bench.model, self.cut.body, self._begun)
        return with_prefix(CUT, to_cpu(self._made))

    def backward(self, came: Weights) -> Weights:
        """Backpropagate the gradients from a site's end, and step; give those for its front."""
        optimizer = self._bench.optimizer(WHOLE)
        optimizer.zero_grad()
        backpropagate(self._made, came)
        optimizer.step()
        return with_prefix(CUT, leaf_gradients(self._begun))

    def learn(self, came: Weights) -> Weights:
        """Judge the output by labels that came with it, and step; give gradients for the front."""
        bench = self._bench
        labels = {
            name: tensor.to(bench.device) for name, tensor in without_prefix(LABEL, came).items()
        }
        losses = self.task.losses_of_output(bench.model, self._made["output"], labels)
        for part, loss in bench.under_autocast(losses):
            step(bench, WHOLE, loss)
            self._totals.setdefault(part, []).append(loss.detach())
        return with_prefix(CUT, leaf_gradients(self._begun))

    def losses(self) -> Mapping[str, float]:
        """Give the turn's mean losses, where the labels came here. Raises `RunFailed`."""
        try:
            return means(self._totals)
        except FloatingPointError as error:
            raise RunFailed(f"the server's part: {error}") from None

    @torch.no_grad()
    def predict(self, came: Weights) -> Weights:
        """Run the server's stages in evaluation mode, in full precision."""
        model = self._bench.model.eval()
        placed = {n: t.to(self._bench.device) for n, t in without_prefix(CUT, came).items()}
        return with_prefix(CUT, to_cpu(self.task.run(model, self.cut.body, placed)))
