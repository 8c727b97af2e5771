"""The critics of a study, one for each task or a single one: which judges which rows of a batch."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor

from grandrounds.models.discriminator import Discriminator, build_discriminator
from grandrounds.models.norm import Norm
from grandrounds.seeds import seed_for
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

    def build(
        self, names: Iterable[str], *, width: int, layers: int, norm: Norm, seed: int
    ) -> dict[str, Discriminator]:
        """Build critics: with pairs of images they see the source beside a target."""
        in_channels = 1 if self.both_ways else 2
        return {
            name: build_discriminator(
                width=width,
                layers=layers,
                norm=norm,
                in_channels=in_channels,
                seed=seed_for(seed, "critic", name),
            )
            for name in names
        }

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
