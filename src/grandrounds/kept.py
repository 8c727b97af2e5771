"""What one site keeps on its own disk: private state, and models that leaders merged."""

from dataclasses import dataclass
from pathlib import Path

from grandrounds.checkpoints import Rounds, State, load_state, save_state
from grandrounds.weights import OPTIMIZER, Weights, below, read, select, write

PERSONAL = "personal/"
MEMORY = "memory/"  # before the names of what the task remembers of its training


@dataclass(frozen=True)
class Kept:
    """The rounds that a site can go on from, below its own folder."""

    folder: Path

    @property
    def private(self) -> Rounds:
        """Give the rounds of private state: own weights, optimiser state, control variates."""
        return Rounds(self.folder / "state")

    @property
    def _merged(self) -> Path:
        return self.folder / "merged"

    def held(self) -> tuple[int, ...]:
        """List the rounds that are complete here."""
        merged = Rounds(self._merged / "state").held()
        return tuple(r for r in self.private.held() if not merged or r in merged)

    def keep_merged(self, state: State, best: int) -> None:
        """Keep a merged model and what goes with it. Raises `DiskFailed`."""
        save_state(self._merged, State(state.weights, state.round, state.memory, best))

    def has_merged(self, round: int) -> bool:
        """Tell whether a leader's merged model of a round is kept here."""
        return Rounds(self._merged / "state").path(round).exists()

    def merged(self, round: int) -> State:
        """Load the merged model of a round. Raises `BadFolder`."""
        return load_state(self._merged, round)

    def write_model(self, name: str, round: int, own: Weights) -> None:
        """Write what of a round's model is the site's alone, and the merged one if it is here."""
        notes = {"site": self.folder.name, "round": str(round)}
        write(self.folder / f"private{name}.safetensors", own, notes)
        if self.has_merged(round):
            write(self.folder / f"shared{name}.safetensors", self.merged(round).weights, notes)

    def keep_tuned(self, weights: Weights) -> None:
        """Keep the model that was fine-tuned for this site alone."""
        write(self.folder / "tuned.safetensors", weights)

    def tuned(self) -> Weights:
        """Load the fine-tuned model. Raises `BadFolder`."""
        return read(self.folder / "tuned.safetensors")[0]


def model_of(private: Weights) -> Weights:
    """Select the model's own tensors in private state."""
    return select(private, lambda name: "/" not in name)


def personal_of(private: Weights) -> Weights:
    """Select the personal model of private state, and its optimiser's state."""
    return below(PERSONAL, private)


def moments_of(private: Weights) -> Weights:
    """Select an optimiser's state."""
    return select(private, lambda name: name.startswith(OPTIMIZER))
