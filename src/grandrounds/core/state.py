"""The coordinator's state and each site's private state are saved to disk after each round.

Everything is written to a temporary name, flushed and renamed, so that a process may be killed at
any moment. The newest two rounds and the best one stay on disk. Each file has the digests of its
tensors in its notes, and is held against them when it is read.
"""

import json
from collections.abc import Container, Mapping, Sequence, Set
from dataclasses import dataclass, field, replace
from functools import cached_property
from hashlib import sha256
from pathlib import Path

from torch import Tensor

from grandrounds.core.errors import BadFolder
from grandrounds.core.run_folder import RunFolder
from grandrounds.core.sentence import Sentence, phrase
from grandrounds.core.weights import Weights, digest, read, with_prefix, without_prefix, write

_VERSIONS = "versions"  # a note
NO_SCORE = float("-inf")
_DAMAGED = phrase("a file of saved tensors is missing or damaged")
_DIGESTS, _SEAL = "digests", "seal"  # notes: digests by the start of names; of all other notes


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
        return self.held or self.digest_of_weights

    @cached_property
    def digest_of_weights(self) -> str:
        """Return the digest of the weights that are held here; it is computed once."""
        return digest(self.weights)

    def last_of(self, site: str) -> int:
        """Return the last round that a site took part in."""
        return self.seen.get(site, self.round)

    def missed_by(self, roster: Sequence[str], answered: Container[str]) -> dict[str, int]:
        """Map each site of a roster that missed the next round to its last one."""
        return {name: self.last_of(name) for name in roster if name not in answered}

    def best_of(self, site: str) -> int:
        """Return the last round that a site had taken part in when the best round ended."""
        return self.best_seen.get(site, self.best_round)


@dataclass(frozen=True)
class RoundStore:
    """A folder with one safetensors file a round; a `private` one is its owner's alone."""

    folder: Path
    private: bool = False

    def path(self, round: int) -> Path:
        return self.folder / f"round-{round:06d}.safetensors"

    def rounds(self) -> tuple[int, ...]:
        """List the rounds that can be read, oldest first."""
        names = self.folder.glob("round-*.safetensors")
        return tuple(sorted(int(name.stem.removeprefix("round-")) for name in names))

    def save(
        self,
        round: int,
        weights: Weights,
        notes: Mapping[str, str],
        keep: set[int],
        digests: Mapping[str, str] | None = None,
    ) -> None:
        """Save a round; drop all but this one, the one before and `keep`. Raises `DiskFailed`.

        `digests` maps the start of tensors' names to the digest of those tensors under the rest of
        their names, where they are known already.
        """
        write_sealed(self.path(round), weights, notes, digests, private=self.private)
        for old in set(self.rounds()) - {round, round - 1} - keep:
            self.path(old).unlink()

    def load(self, round: int) -> tuple[Weights, dict[str, str]]:
        """Read a round. Raises `BadFolder` where it is missing, or is not what was saved.

        A file of a version that saved no digests is taken as it is.
        """
        if not self.path(round).exists():
            held = ", ".join(str(r) for r in self.rounds()) or "none"
            raise BadFolder(
                f"{self.folder}: round {round} is not here; held: {held}",
                safe=phrase("its saved state of round {round} is missing", round=round),
            )
        damage = phrase("its saved state of round {round} is damaged", round=round)
        return read_sealed(self.path(round), damage)


def write_sealed(
    path: Path,
    weights: Weights,
    notes: Mapping[str, str] | None = None,
    digests: Mapping[str, str] | None = None,
    *,
    private: bool = False,
) -> None:
    """Write tensors with their digests in the file's notes, as `write` does. Raises `DiskFailed`.

    `digests` maps the start of tensors' names to a digest, where it is known already.
    """
    said = {**(notes or {}), _DIGESTS: json.dumps(digests or {"": digest(weights)})}
    write(path, weights, {**said, _SEAL: _seal(said)}, private=private)


def read_sealed(path: Path, damage: Sentence = _DAMAGED) -> tuple[Weights, dict[str, str]]:
    """Read tensors and notes; raise `BadFolder` where they are not what `write_sealed` wrote.

    A file of a version that wrote no digests is taken as it is. `damage` is what others are told.
    """
    tensors, notes = read(path)
    if not _is_intact(tensors, notes):
        raise BadFolder(
            f"{path}: is not what was saved (its digests differ), so the disk or a copy changed "
            "it; put it back from a copy",
            safe=damage,
        )
    return tensors, notes


def _seal(notes: Mapping[str, str]) -> str:
    return sha256(json.dumps(sorted(notes.items())).encode()).hexdigest()


def _is_intact(tensors: Weights, notes: Mapping[str, str]) -> bool:
    if not notes.keys() & {_DIGESTS, _SEAL}:
        return True
    others = {name: note for name, note in notes.items() if name != _SEAL}
    if notes.get(_SEAL) != _seal(others):
        return False
    digests: Mapping[str, str] = json.loads(others[_DIGESTS])
    return all(digest(without_prefix(start, tensors)) == known for start, known in digests.items())


def to_tensors(state: State) -> Weights:
    """Return a state's weights and memory as one set of named tensors."""
    return with_prefix("weights/", state.weights) | with_prefix("memory/", state.memory)


def from_tensors(tensors: Weights, round: int) -> State:
    """Return the state whose tensors `to_tensors` joined."""
    return State(without_prefix("weights/", tensors), round, without_prefix("memory/", tensors))


def saved_rounds(folder: Path) -> RoundStore:
    """Return the rounds of the coordinator's state in a run folder."""
    return RoundStore(RunFolder(folder).state)


def save_state(
    folder: Path,
    state: State,
    *,
    versions: Mapping[str, str] | None = None,
    keep: Set[int] = frozenset(),
    private: bool = False,
) -> None:
    """Save the coordinator's state of one round, and keep these older ones. Raises `DiskFailed`.

    `versions` are those of the programs that computed it.
    """
    store = RoundStore(RunFolder(folder).state, private)
    facts = (state.best_round, state.best_score, state.held, state.seen, state.best_seen)
    notes = {"state": json.dumps(facts), _VERSIONS: json.dumps(versions or {})}
    digests = {"weights/": state.digest_of_weights, "memory/": digest(state.memory)}
    kept = {state.best_round, *keep}
    store.save(state.round, to_tensors(state), notes, kept, digests)


def versions_of(folder: Path, round: int) -> dict[str, str]:
    """Return the versions of the programs that computed a round; empty where nobody noted them."""
    return json.loads(saved_rounds(folder).load(round)[1].get(_VERSIONS, "{}"))


def load_state(folder: Path, round: int) -> State:
    """Load the coordinator's state of one round. Raises `BadFolder`."""
    tensors, notes = saved_rounds(folder).load(round)
    try:
        best_round, best_score, held, seen, best_seen = json.loads(notes["state"])
    except (KeyError, ValueError):
        raise BadFolder(f"{saved_rounds(folder).path(round)}: lacks what a state says") from None
    return replace(
        from_tensors(tensors, round),
        best_round=best_round,
        best_score=best_score,
        held=held,
        seen=seen,
        best_seen=best_seen,
    )
