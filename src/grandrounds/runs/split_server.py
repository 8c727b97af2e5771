"""The server trains its part of a split network here, in the coordinator's process."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor

from grandrounds.core.device import autocast
from grandrounds.core.errors import RunFailed
from grandrounds.core.seeds import seed_for
from grandrounds.core.weights import Filter, Weights, below, copied, named, select
from grandrounds.site.cut import CUT, LABEL, WHOLE, Cut, begun_at, go_back, gradients_at
from grandrounds.site.training import Bench, Training, means, own_randomness, step
from grandrounds.tasks.task import Task


@dataclass
class Server:
    """Runs the stages between the cuts, forwards and backwards; `build` makes its bench.

    Its optimiser knows no parts of the network: a part's parameters may lie on both sides.
    """

    task: Task
    cut: Cut
    travels: Filter
    training: Training
    rounds: int
    seed: int
    build: Callable[[], Bench]
    _begun: Weights = field(default_factory=dict[str, Tensor])
    _made: Weights = field(default_factory=dict[str, Tensor])
    _totals: dict[str, list[Tensor]] = field(default_factory=dict[str, list[Tensor]])

    @cached_property
    def _bench(self) -> Bench:
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
        self._begun = begun_at(came, bench.device)
        seed = seed_for(self.seed, site, round, "server", batch)
        with own_randomness(seed), autocast(bench.device, bench.precision):
            self._made = self.task.run(bench.model, self.cut.middle, self._begun)
        return named(CUT, copied(self._made))

    def backward(self, came: Weights) -> Weights:
        """Backpropagate the gradients from a site's end, and step; give those for its front."""
        optimizer = self._bench.optimizer(WHOLE)
        optimizer.zero_grad()
        go_back(self._made, came)
        optimizer.step()
        return named(CUT, gradients_at(self._begun))

    def learn(self, came: Weights) -> Weights:
        """Judge the output by labels that came with it, and step; give gradients for the front."""
        bench = self._bench
        labels = {name: tensor.to(bench.device) for name, tensor in below(LABEL, came).items()}
        losses = self.task.judge(bench.model, self._made["output"], labels)
        for part, loss in bench.under_autocast(losses):
            step(bench, WHOLE, loss)
            self._totals.setdefault(part, []).append(loss.detach())
        return named(CUT, gradients_at(self._begun))

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
        placed = {n: t.to(self._bench.device) for n, t in below(CUT, came).items()}
        return named(CUT, copied(self.task.run(model, self.cut.middle, placed)))
