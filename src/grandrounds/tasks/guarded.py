"""FedMed-GAN's protection of what a generator learns from its critics. Wang et al. 2023."""

from dataclasses import dataclass

import torch
from torch import Tensor

SMALLEST = torch.finfo(torch.float32).tiny


@dataclass(frozen=True)
class Guarded:
    """Clips what each image learns from its critic, and adds noise; `clip` = 0 does neither.

    Each image's gradient is clipped to `clip` / B, and Gaussian noise of `noise` times that is
    added. By itself this is no (epsilon, delta) guarantee.
    """

    clip: float
    noise: float

    def __call__(self, fake_B1HW: Tensor) -> Tensor:
        """Give the images as critics are shown them, their gradients to be clipped and noised."""
        if not self.clip or not fake_B1HW.requires_grad:
            return fake_B1HW
        guarded = fake_B1HW.view_as(fake_B1HW)
        guarded.register_hook(self._protected)  # pyright: ignore[reportUnknownMemberType]
        return guarded

    def _protected(self, gradient_B1HW: Tensor) -> Tensor:
        bound = self.clip / len(gradient_B1HW)
        norms_B = gradient_B1HW.square().sum((1, 2, 3)).sqrt().clamp_min(SMALLEST)
        scale_B = (bound / norms_B).clamp_max(1.0)
        clipped = gradient_B1HW * scale_B[:, None, None, None]
        return clipped + torch.randn_like(clipped) * (self.noise * bound)
