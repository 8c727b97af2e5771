"""A site's weights: which of them are private, which shared, and how they are kept on disk."""

from dataclasses import dataclass
from pathlib import Path

from torch import nn

from grandrounds.core.messages import Evaluate, Train, Tune
from grandrounds.core.run_folder import SiteFolder
from grandrounds.core.state import RoundStore, State, load_state, save_state, saved_rounds
from grandrounds.core.weights import OPTIMIZER, Weights, read, select, without_prefix, write
from grandrounds.site.setup import SiteSetup
from grandrounds.site.training import Trainer

PERSONAL = "personal/"
MEMORY = "memory/"  # before the names of what the task remembers of its training


@dataclass(frozen=True)
class SiteStore:
    """The rounds that a site can go on from, below its own folder."""

    folder: Path

    @property
    def private(self) -> RoundStore:
        """Give the rounds of private state: own weights, optimiser state, control variates."""
        return RoundStore(self._files.state)

    @property
    def _files(self) -> SiteFolder:
        return SiteFolder(self.folder)

    def rounds(self) -> tuple[int, ...]:
        """List the rounds that are complete here."""
        merged = saved_rounds(self._files.merged).rounds()
        return tuple(r for r in self.private.rounds() if not merged or r in merged)

    def save_merged(self, state: State, best: int) -> None:
        """Keep a merged model and what goes with it. Raises `DiskFailed`."""
        save_state(self._files.merged, State(state.weights, state.round, state.memory, best))

    def has_merged(self, round: int) -> bool:
        """Tell whether a leader's merged model of a round is kept here."""
        return saved_rounds(self._files.merged).path(round).exists()

    def merged(self, round: int) -> State:
        """Load the merged model of a round. Raises `BadFolder`."""
        return load_state(self._files.merged, round)

    def write_model(self, name: str, round: int, own: Weights) -> None:
        """Write what of a round's model is the site's alone, and the merged one if it is here."""
        notes = {"site": self.folder.name, "round": str(round)}
        write(self._files.private(name), own, notes)
        if self.has_merged(round):
            write(self._files.shared(name), self.merged(round).weights, notes)

    def save_tuned(self, weights: Weights) -> None:
        """Keep the model that was fine-tuned for this site alone."""
        write(self._files.tuned, weights)

    def load_tuned(self) -> Weights:
        """Load the fine-tuned model. Raises `BadFolder`."""
        return read(self._files.tuned)[0]


def model_tensors(private: Weights) -> Weights:
    """Select the model's own tensors in private state."""
    return select(private, lambda name: "/" not in name)


def personal_tensors(private: Weights) -> Weights:
    """Select the personal model of private state, and its optimiser's state."""
    return without_prefix(PERSONAL, private)


def optimizer_tensors(private: Weights) -> Weights:
    """Select an optimiser's state."""
    return select(private, lambda name: name.startswith(OPTIMIZER))


@dataclass(frozen=True)
class SiteModel:
    """One site's place at a bench that it may share."""

    site: SiteSetup

    @property
    def bench(self) -> Trainer:
        """The model in memory that the site shares."""
        return self.site.bench

    @property
    def kept(self) -> SiteStore:
        """What the site keeps in its folder."""
        return SiteStore(self.site.folder)

    def private_of(self, round: int) -> Weights:
        """Give the private state after a round; before the first it is the first weights."""
        if round == 0:
            return select(self.site.first_weights(), self.site.uses)
        return self.kept.private.load(round)[0]

    def merged(self, round: int) -> State:
        """Give the merged model of a round; before the first it is what all sites start from."""
        first = State(select(self.site.first_weights(), self.site.travels))
        return self.kept.merged(round) if round and first.weights else first

    def incoming(self, request: Train | Evaluate | Tune) -> Weights:
        """Give what a request brought, or the merged model that this site holds itself."""
        if request.weights:
            return request.weights
        return self.site.method.broadcast(self.merged(request.since), self.site.name)

    def load_for_training(self, tensors: Weights) -> None:
        """Put a model on the bench to train: weights, and the optimiser's state if it lasts."""
        self.bench.load(model_tensors(tensors))
        keeps = not self.site.training.reset_optimizer
        self.bench.load_optimizer_state(optimizer_tensors(tensors) if keeps else {})
        if self.site.training.norm_buffers == "reset":
            _reset_running_statistics(self.bench.model)

    def shared(self, *, with_moments: bool) -> Weights:
        """Copy what may leave the bench, with the optimiser's state where that travels too."""
        moments = self.bench.optimizer_state(self.site.travels) if with_moments else {}
        leaves = self.bench.weights(lambda name: self.site.uses(name) and self.site.travels(name))
        return leaves | moments

    def private(self) -> Weights:
        """Copy what stays: own weights, and the optimiser's state."""
        stays = self.bench.weights(
            lambda name: self.site.uses(name) and not self.site.travels(name)
        )
        return stays | self.bench.optimizer_state(self.site.uses)

    def all_weights(self) -> Weights:
        """Copy the whole model of the site's tasks."""
        return self.bench.weights(self.site.uses)

    def local_model(self, request: Evaluate | Tune) -> Weights:
        """Give the model that this site uses: private and shared, or its personal one."""
        private = self.private_of(request.since)
        return model_tensors(
            private | self.incoming(request) | model_tensors(personal_tensors(private))
        )

    def write_models(self, rounds: dict[str, int]) -> None:
        """Write what of each round's model is the site's alone; a name ends the file's."""
        for name, round in rounds.items():
            private = self.private_of(round)
            own = select(model_tensors(private), lambda n: not self.site.travels(n))
            self.kept.write_model(name, round, own | model_tensors(personal_tensors(private)))


def _reset_running_statistics(model: nn.Module) -> None:
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):  # pyright: ignore[reportPrivateUsage]
            module.reset_running_stats()
