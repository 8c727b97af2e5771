"""Images made earlier, which critics are shown among the newest ones. Shrivastava et al. 2017."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from grandrounds.precision import full
from grandrounds.weights import Weights, copied


@dataclass(frozen=True)
class ImagePool:
    """Up to `size` images for each critic, which change as the pool is used; 0 keeps none."""

    size: int
    kept: dict[str, list[Tensor]] = field(default_factory=dict[str, list[Tensor]])

    @staticmethod
    def of(size: int, memory: Mapping[str, Tensor]) -> "ImagePool":
        """Make a pool of what one held before."""
        return ImagePool(size, {critic: list(images) for critic, images in memory.items()})

    @property
    def memory(self) -> Weights:
        """Copy what the pool holds: for each critic (N, 1, H, W)."""
        return copied({critic: torch.stack(images) for critic, images in self.kept.items()})

    def shown(self, critic: str, fakes_B1HW: Tensor) -> Tensor:
        """Give the images to show a critic; once the pool is full, half of them are older ones.

        An older image leaves the pool for the new one in whose place it is shown.
        """
        if not self.size:
            return fakes_B1HW
        kept = self.kept.setdefault(critic, [])
        fakes = full(fakes_B1HW.detach())
        return torch.stack([self._exchanged(kept, fake_1HW.clone()) for fake_1HW in fakes])

    def _exchanged(self, kept: list[Tensor], fake_1HW: Tensor) -> Tensor:
        if len(kept) < self.size:
            kept.append(fake_1HW)
            return fake_1HW
        if float(torch.rand(())) < 0.5:
            return fake_1HW
        place = int(torch.randint(self.size, ()))
        older, kept[place] = kept[place].to(fake_1HW.device), fake_1HW
        return older
