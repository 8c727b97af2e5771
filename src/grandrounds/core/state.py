"""The coordinator's state and each site's private state are saved to disk after each round.

Everything is written to a temporary name, flushed and renamed, so that a process may be killed at
any moment. The newest two rounds and the best one stay on disk.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from torch import Tensor

from grandrounds.core.errors import BadFolder
from grandrounds.core.run_folder import RunFolder
from grandrounds.core.sentence import phrase
from grandrounds.core.weights import Weights, digest, read, with_prefix, without_prefix, write

NO_SCORE = float("-inf")


@dataclass(frozen=True)
class State:
    """All that survives a round at the coordinator.

    Saving it is checkpointing; loading it is resuming. `memory` holds what a method's server step
    remembers, such as momentum; `best_round` had the best weighted validation score. `held` is the
    digest of the model where the sites hold it and not the coordinator. `seen` maps each site that
    missed this round to the one it last took part in; `best_seen` does so for the best round.
    """

    weights: Weights
    round: int = 0
    memory: Weights = field(default_factory=dict[str, Tensor])
    best_round: int = 0
    best_score: float = NO_SCORE
    held: str = ""
    seen: Mapping[str, int] = field(default_factory=dict[str, int])
    best_seen: Mapping[str, int] = field(default_factory=dict[str, int])

    @property
    def fingerprint(self) -> str:
        """Return the digest of the shared model, whoever holds it."""
        return self.held or digest(self.weights)

    def last_of(self, site: str) -> int:
        """Return the last round that a site took part in."""
        return self.seen.get(site, self.round)

    def best_of(self, site: str) -> int:
        """Return the last round that a site had taken part in when the best round ended."""
        return self.best_seen.get(site, self.best_round)


@dataclass(frozen=True)
class RoundStore:
    """A folder with one safetensors file a round."""

    folder: Path

    def path(self, round: int) -> Path:
        return self.folder / f"round-{round:06d}.safetensors"

    def rounds(self) -> tuple[int, ...]:
        """List the rounds that can be read, oldest first."""
        names = self.folder.glob("round-*.safetensors")
        return tuple(sorted(int(name.stem.removeprefix("round-")) for name in names))

    def save(self, round: int, weights: Weights, notes: dict[str, str], keep: set[int]) -> None:
        """Save a round; drop all but this one, the one before and `keep`. Raises `DiskFailed`."""
        write(self.path(round), weights, notes)
        for old in set(self.rounds()) - {round, round - 1} - keep:
            self.path(old).unlink()

    def load(self, round: int) -> tuple[Weights, dict[str, str]]:
        """Read a round. Raises `BadFolder` where it is missing or damaged."""
        if not self.path(round).exists():
            held = ", ".join(str(r) for r in self.rounds()) or "none"
            raise BadFolder(
                f"{self.folder}: round {round} is not here; held: {held}",
                safe=phrase("its saved state of round {round} is missing", round=round),
            )
        return read(self.path(round))


def to_tensors(state: State) -> Weights:
    """Return a state's weights and memory as one set of named tensors."""
    return with_prefix("weights/", state.weights) | with_prefix("memory/", state.memory)


def from_tensors(tensors: Weights, round: int) -> State:
    """Return the state whose tensors `to_tensors` joined."""
    return State(without_prefix("weights/", tensors), round, without_prefix("memory/", tensors))


def saved_rounds(folder: Path) -> RoundStore:
    """Return the rounds of the coordinator's state in a run folder."""
    return RoundStore(RunFolder(folder).state)


def save_state(folder: Path, state: State) -> None:
    """Save the coordinator's state of one round. Raises `DiskFailed`."""
    facts = (state.best_round, state.best_score, state.held, state.seen, state.best_seen)
    notes = {"state": json.dumps(facts)}
    saved_rounds(folder).save(state.round, to_tensors(state), notes, {state.best_round})


def load_state(folder: Path, round: int) -> State:
    """Load the coordinator's state of one round. Raises `BadFolder`."""
    tensors, notes = saved_rounds(folder).load(round)
    best_round, best_score, held, seen, best_seen = json.loads(notes["state"])
    return replace(
        from_tensors(tensors, round),
        best_round=best_round,
        best_score=best_score,
        held=held,
        seen=seen,
        best_seen=best_seen,
    )


def newest_complete_round(folder: Path, sites: Mapping[str, tuple[int, ...]]) -> int:
    """Return the newest round that the coordinator and all its sites have saved; 0 if none.

    `sites` maps each site to the rounds whose private state it holds. A site that missed a round
    counts with the last one it took part in.
    """
    for round in reversed(saved_rounds(folder).rounds()):
        state = load_state(folder, round)
        if all(state.last_of(site) in {0, *held} for site, held in sites.items()):
            return round
    return 0
