"""Image translation is trained by the losses of a generator and of the critics that judge it."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TypeAlias

import torch
from torch import Tensor, nn

from grandrounds.core.device import to_float32
from grandrounds.core.weights import Weights, to_cpu
from grandrounds.models.discriminator import frozen
from grandrounds.tasks.task import Batch

_SMALLEST = torch.finfo(torch.float32).tiny


@dataclass(frozen=True)
class GradientGuard:
    """Clips each image's gradient from its critic and adds noise; `clip` = 0 does neither.

    Each image's gradient is clipped to `clip` / B, and Gaussian noise of `noise` times that is
    added. By itself this is no (epsilon, delta) guarantee.
    """

    clip: float
    noise: float

    def __call__(self, fake_B1HW: Tensor) -> Tensor:
        """Return images for the critics, whose gradients will be clipped and get noise."""
        if not self.clip or not fake_B1HW.requires_grad:
            return fake_B1HW
        guarded = fake_B1HW.view_as(fake_B1HW)
        guarded.register_hook(self._protect)  # pyright: ignore[reportUnknownMemberType]
        return guarded

    def _protect(self, gradient_B1HW: Tensor) -> Tensor:
        bound = self.clip / len(gradient_B1HW)
        norms_B = gradient_B1HW.square().sum((1, 2, 3)).sqrt().clamp_min(_SMALLEST)
        scale_B = (bound / norms_B).clamp_max(1.0)
        clipped = gradient_B1HW * scale_B[:, None, None, None]
        return clipped + torch.randn_like(clipped) * (self.noise * bound)


@dataclass(frozen=True)
class ImagePool:
    """A pool of up to `size` images for each critic, which change with use; 0 stores none."""

    size: int
    images: dict[str, list[Tensor]] = field(default_factory=dict[str, list[Tensor]])

    @staticmethod
    def of(size: int, memory: Mapping[str, Tensor]) -> "ImagePool":
        """Make a pool of the images in an earlier pool's memory."""
        return ImagePool(size, {critic: list(images) for critic, images in memory.items()})

    @property
    def memory(self) -> Weights:
        """Return a copy of the pool's images: for each critic (N, 1, H, W)."""
        return to_cpu({critic: torch.stack(images) for critic, images in self.images.items()})

    def shown(self, critic: str, fakes_B1HW: Tensor) -> Tensor:
        """Return the images for a critic; once the pool is full, half of them are older ones.

        An older image that is used leaves the pool, and the new one takes its place.
        """
        if not self.size:
            return fakes_B1HW
        pool = self.images.setdefault(critic, [])
        fakes = to_float32(fakes_B1HW.detach())
        return torch.stack([self._exchange(pool, fake_1HW.clone()) for fake_1HW in fakes])

    def _exchange(self, pool: list[Tensor], fake_1HW: Tensor) -> Tensor:
        if len(pool) < self.size:
            pool.append(fake_1HW)
            return fake_1HW
        if float(torch.rand(())) < 0.5:
            return fake_1HW
        place = int(torch.randint(self.size, ()))
        older, pool[place] = pool[place].to(fake_1HW.device), fake_1HW
        return older


Distance: TypeAlias = Callable[[Tensor, Tensor], Tensor]  # of images from their targets
Translate: TypeAlias = Callable[[Tensor, Tensor], Tensor]  # images and codes to images


@dataclass(frozen=True)
class Side:
    """One direction of a batch: images, the code of the direction, and the critics of the results.

    `judged` maps each critic to its rows; a critic reads one image, never a pair.
    """

    images: Tensor
    code: Tensor
    judged: dict[str, Tensor]


@dataclass(frozen=True)
class CycleLosses:
    """The weights of the three losses, the guard of gradients, and the pool of critics' images."""

    adversarial: float
    cycle: float
    identity: float
    guard: GradientGuard
    pool: ImagePool

    def losses(
        self, translate: Translate, critics: nn.ModuleDict, there: Side, back: Side
    ) -> Iterator[tuple[str, Tensor]]:
        """Yield the loss of every critic with rows, then that of both directions together."""
        made = {
            "there": translate(there.images, there.code),
            "back": translate(back.images, back.code),
        }
        sides = ((there, made["there"], back.images), (back, made["back"], there.images))
        for side, fakes, reals in sides:
            for name, rows in side.judged.items():
                shown = self.pool.shown(name, fakes[rows])
                on_fake, on_real = critics[name](shown.detach()), critics[name](reals[rows])
                yield f"critics.{name}", _critic_loss(on_real, on_fake)
        total = torch.zeros((), device=there.images.device)
        for side, fakes, other in ((there, made["there"], back), (back, made["back"], there)):
            again = translate(fakes, other.code)
            total = total + self.adversarial * _realism_loss(
                critics, side.judged, self.guard(fakes)
            )
            total = total + self.cycle * (to_float32(again) - side.images).abs().mean()
            total = (
                total
                + self.identity
                * (to_float32(fakes) - to_float32(translate(fakes, side.code))).abs().mean()
            )
        yield "generator", total


def absolute_distance(made: Tensor, target: Tensor) -> Tensor:
    """Return the mean absolute difference of images from their targets."""
    return (made - target).abs().mean()


@dataclass(frozen=True)
class PairedLosses:
    """The weights of the two losses, and the guard of the generator's gradients from critics.

    `apart` gives a critic real and synthetic images in two batches, so that batch norm does not mix
    their statistics. `distance` is what `l1` weighs.
    """

    adversarial: float
    l1: float
    guard: GradientGuard
    apart: bool
    distance: Distance = absolute_distance

    def losses(
        self, critics: nn.ModuleDict, fake: Tensor, batch: Batch, judged: Mapping[str, Tensor]
    ) -> Iterator[tuple[str, Tensor]]:
        """Yield the loss of every critic with rows, then that of the images (B, 1, H, W)."""
        source, target = batch["source"], batch["target"]
        for name, rows in judged.items():
            real = torch.cat([source[rows], target[rows]], 1)
            made = torch.cat([source[rows], fake[rows].detach()], 1)
            yield f"critics.{name}", _critic_loss(*self._verdicts(critics[name], real, made))
        shown = torch.cat([source, self.guard(fake)], 1)
        adversarial = _realism_loss(critics, judged, shown)
        distance = self.distance(to_float32(fake), target)
        yield "generator", self.adversarial * adversarial + self.l1 * distance

    def _verdicts(self, critic: nn.Module, real: Tensor, made: Tensor) -> tuple[Tensor, Tensor]:
        if self.apart:
            return critic(real), critic(made)
        on_real, on_made = critic(torch.cat([real, made])).chunk(2)
        return on_real, on_made


def _critic_loss(on_real: Tensor, on_fake: Tensor) -> Tensor:
    """Return the loss of a critic whose target is 1 for real and 0 for synthetic images."""
    return 0.5 * (on_fake.square().mean() + (on_real - 1).square().mean())


def _realism_loss(
    critics: nn.ModuleDict, judged: Mapping[str, Tensor], images: Tensor
) -> Tensor | float:
    """Return how far critics' outputs for images are from 1, the target of real ones.

    The critics get no gradients from it. Without critics it is 0.
    """
    losses: list[Tensor] = []
    for name, rows in judged.items():
        with frozen(critics[name]):
            losses.append((critics[name](images[rows]) - 1).square().flatten(1).mean(1).sum())
    return torch.stack(losses).sum() / len(images) if losses else 0.0
