"""Which critic judges which rows of a batch: one for each task, or a single one for all."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor

from grandrounds.tasks.coding import Pair
from grandrounds.tasks.task import Batch

SINGLE = "any"


@dataclass(frozen=True)
class Judges:
    """The critics of a study; without paired images the ways back have critics too."""

    contrasts: tuple[str, ...]
    per_task: bool
    both_ways: bool

    def of(self, pair: Pair) -> str:
        """Name the critic of a pair."""
        return pair.label if self.per_task else SINGLE

    def names(self, pairs: Iterable[Pair]) -> tuple[str, ...]:
        """Name the critics of pairs, each once."""
        ways = (w for p in pairs for w in ((p, p.reversed) if self.both_ways else (p,)))
        return tuple(dict.fromkeys(self.of(way) for way in ways))

    def pairs(self, batch: Batch) -> list[Pair]:
        """Read the pair of each row."""
        found = cast(list[list[int]], batch["pair"].tolist())  # pyright: ignore[reportUnknownMemberType]
        return [Pair(self.contrasts[source], self.contrasts[target]) for source, target in found]

    def rows(self, pairs: Sequence[Pair]) -> dict[str, Tensor]:
        """Map each critic that pairs concern to its rows."""
        rows: dict[str, list[int]] = {}
        for row, pair in enumerate(pairs):
            rows.setdefault(self.of(pair), []).append(row)
        return {name: torch.tensor(found) for name, found in rows.items()}
