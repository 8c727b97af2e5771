"""Translation with pairs of images: critics see the source beside each target, made or real.

A least-squares GAN (Mao et al. 2017) beside an L1 distance, as in Isola et al. 2017.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from grandrounds.models.discriminator import frozen
from grandrounds.precision import full
from grandrounds.tasks.guarded import Guarded
from grandrounds.tasks.task import Batch


@dataclass(frozen=True)
class Paired:
    """The weights of the two losses, and the protection of what the generator learns from critics.

    `apart` shows a critic real and made images in two batches, so that batch norm does not mix
    their statistics.
    """

    adversarial: float
    l1: float
    guard: Guarded
    apart: bool

    def losses(
        self, critics: nn.ModuleDict, fake: Tensor, batch: Batch, judged: Mapping[str, Tensor]
    ) -> Iterator[tuple[str, Tensor]]:
        """Yield the loss of every critic concerned, then that of the images (B, 1, H, W)."""
        source, target = batch["source"], batch["target"]
        for name, rows in judged.items():
            images = source[rows], target[rows], fake[rows]
            yield f"critics.{name}", _critic_loss(critics[name], *images, apart=self.apart)
        shown = self.guard(fake)
        verdicts = [_realism(critics[n], source[r], shown[r]) for n, r in judged.items()]
        distance = (full(fake) - target).abs().mean()
        adversarial = torch.stack(verdicts).sum() / len(source) if verdicts else 0.0
        yield "generator", self.adversarial * adversarial + self.l1 * distance


def _critic_loss(
    critic: nn.Module, source: Tensor, target: Tensor, fake: Tensor, *, apart: bool
) -> Tensor:
    """Give the loss of a critic that takes the target for real and the fake for made."""
    real_BCHW, fake_BCHW = torch.cat([source, target], 1), torch.cat([source, fake.detach()], 1)
    if apart:
        on_real, on_fake = critic(real_BCHW), critic(fake_BCHW)
    else:
        on_real, on_fake = critic(torch.cat([real_BCHW, fake_BCHW])).chunk(2)
    return 0.5 * (on_fake.square().mean() + (on_real - 1).square().mean())


def _realism(critic: nn.Module, source: Tensor, fake: Tensor) -> Tensor:
    """Give the generator's loss against a critic that learns nothing from it, summed over cases."""
    with frozen(critic):
        verdict = critic(torch.cat([source, fake], 1))
    return (verdict - 1).square().flatten(1).mean(1).sum()
