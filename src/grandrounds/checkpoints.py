"""What survives a round, on disk: the coordinator's `State`, and each site's private state.

Everything is written to a temporary name, flushed and renamed, so that a process may be killed at
any moment. The newest two rounds and the best one are kept.
"""

import json
from dataclasses import dataclass, field
from pathlib import Path

from torch import Tensor

from grandrounds.errors import BadFolder
from grandrounds.weights import Weights, read, write

NO_SCORE = float("-inf")


@dataclass(frozen=True)
class State:
    """All that survives a round at the coordinator.

    Saving this is checkpointing; loading it is resuming. `memory` is what a method's server step
    remembers; `best_round` had the best weighted validation score.
    """

    weights: Weights
    round: int = 0
    memory: Weights = field(default_factory=dict[str, Tensor])
    best_round: int = 0
    best_score: float = NO_SCORE


@dataclass(frozen=True)
class Rounds:
    """A folder with one safetensors file a round."""

    folder: Path

    def path(self, round: int) -> Path:
        """Name the file of a round."""
        return self.folder / f"round-{round:06d}.safetensors"

    def held(self) -> tuple[int, ...]:
        """List the rounds that can be read, oldest first."""
        names = self.folder.glob("round-*.safetensors")
        return tuple(sorted(int(name.stem.removeprefix("round-")) for name in names))

    def save(self, round: int, weights: Weights, notes: dict[str, str], *, keep: int) -> None:
        """Save a round; drop all but this one, the one before and `keep`. Raises `DiskFailed`."""
        write(self.path(round), weights, notes)
        for old in set(self.held()) - {round, round - 1, keep}:
            self.path(old).unlink()

    def load(self, round: int) -> tuple[Weights, dict[str, str]]:
        """Read a round. Raises `BadFolder` where it is missing or damaged."""
        if not self.path(round).exists():
            held = ", ".join(str(r) for r in self.held()) or "none"
            raise BadFolder(f"{self.folder}: round {round} is not here; held: {held}")
        return read(self.path(round))


def save_state(folder: Path, state: State) -> None:
    """Save the coordinator's state of one round. Raises `DiskFailed`."""
    tensors = {f"weights/{name}": t for name, t in state.weights.items()}
    tensors |= {f"memory/{name}": t for name, t in state.memory.items()}
    notes = {"best": json.dumps([state.best_round, state.best_score])}
    Rounds(folder / "state").save(state.round, tensors, notes, keep=state.best_round)


def load_state(folder: Path, round: int) -> State:
    """Load the coordinator's state of one round. Raises `BadFolder`."""
    tensors, notes = Rounds(folder / "state").load(round)
    best_round, best_score = json.loads(notes["best"])
    return State(
        weights=_below("weights/", tensors),
        round=round,
        memory=_below("memory/", tensors),
        best_round=best_round,
        best_score=best_score,
    )


def _below(prefix: str, tensors: Weights) -> Weights:
    return {n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)}


def newest_complete_round(folder: Path, sites: dict[str, tuple[int, ...]]) -> int:
    """Find the newest round that the coordinator and all sites hold; 0 if there is none.

    `sites` maps each site to the rounds whose private state it holds.
    """
    common = set(Rounds(folder / "state").held()).intersection(*sites.values())
    return max(common, default=0)
