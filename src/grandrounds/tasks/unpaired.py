"""Translation without pairs of images: critics, a way there and back, and what must not change.

No loss compares an output with its own target. Zhu et al. 2017 (CycleGAN); the identity term is
on the synthetic image, |G(x) - G(G(x))|, as in Wang et al. 2023 (FedMed-GAN).
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor, nn

from grandrounds.models.discriminator import frozen
from grandrounds.precision import full
from grandrounds.tasks.guarded import Guarded
from grandrounds.tasks.pool import ImagePool

Translate: TypeAlias = Callable[[Tensor, Tensor], Tensor]  # images and codes to images


@dataclass(frozen=True)
class Side:
    """One direction of a batch: images, the code that says where to, and who judges the results.

    `judged` maps each critic to its rows; a critic sees one image, never a pair.
    """

    images: Tensor
    code: Tensor
    judged: dict[str, Tensor]


@dataclass(frozen=True)
class Cycle:
    """The weights of the three losses, what is learned from critics, and what these are shown."""

    adversarial: float
    cycle: float
    identity: float
    guard: Guarded
    pool: ImagePool

    def losses(
        self, translate: Translate, critics: nn.ModuleDict, there: Side, back: Side
    ) -> Iterator[tuple[str, Tensor]]:
        """Yield the loss of every critic concerned, then that of both ways together."""
        made = {
            "there": translate(there.images, there.code),
            "back": translate(back.images, back.code),
        }
        sides = ((there, made["there"], back.images), (back, made["back"], there.images))
        for side, fakes, reals in sides:
            for name, rows in side.judged.items():
                shown = self.pool.shown(name, fakes[rows])
                yield f"critics.{name}", _critic_loss(critics[name], reals[rows], shown)
        total = torch.zeros((), device=there.images.device)
        for side, fakes, other in ((there, made["there"], back), (back, made["back"], there)):
            again = translate(fakes, other.code)
            total = total + self.adversarial * _realism(critics, side, self.guard(fakes))
            total = total + self.cycle * (full(again) - side.images).abs().mean()
            total = (
                total
                + self.identity * (full(fakes) - full(translate(fakes, side.code))).abs().mean()
            )
        yield "generator", total


def _critic_loss(critic: nn.Module, real: Tensor, fake: Tensor) -> Tensor:
    on_fake, on_real = critic(fake.detach()), critic(real)
    return 0.5 * (on_fake.square().mean() + (on_real - 1).square().mean())


def _realism(critics: nn.ModuleDict, side: Side, fakes: Tensor) -> Tensor:
    verdicts: list[Tensor] = []
    for name, rows in side.judged.items():
        with frozen(critics[name]):
            verdicts.append((critics[name](fakes[rows]) - 1).square().flatten(1).mean(1).sum())
    return torch.stack(verdicts).sum() / len(fakes)
