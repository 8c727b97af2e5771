"""A generator with its critics, and the least-squares losses between them. Mao et al. 2017."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from grandrounds.models.discriminator import Discriminator, frozen
from grandrounds.models.norm import batch_norm_names
from grandrounds.tasks.networks import Network
from grandrounds.weights import Filter, among, starting_with

SMALLEST = torch.finfo(torch.float32).tiny
GROUPS = ("mapper", "encoder", "bottleneck_early", "bottleneck_late", "decoder", "personal")


class Translator(nn.Module):
    """A generator and the critics that judge it, in one module whose names tell them apart."""

    generator: Network
    critics: nn.ModuleDict

    def __init__(self, generator: Network, critics: Mapping[str, Discriminator]) -> None:
        super().__init__()
        self.generator = generator
        self.critics = nn.ModuleDict(critics)

    def compile(self) -> None:
        """Compile the networks; this container itself is never called."""
        for network in (self.generator, *self.critics.values()):
            network.compile()  # pyright: ignore[reportUnknownMemberType]

    def critic(self, label: str) -> nn.Module:
        """Give the critic of a task."""
        return self.critics[label]


def critic_loss(
    critic: nn.Module, source: Tensor, target: Tensor, fake: Tensor, *, apart: bool
) -> Tensor:
    """Give the loss of a critic that takes the target for real and the fake for made.

    Images are (B, 1, H, W); `apart` shows them in two batches, so that batch norm does not mix
    their statistics.
    """
    real_BCHW, fake_BCHW = torch.cat([source, target], 1), torch.cat([source, fake.detach()], 1)
    if apart:
        on_real, on_fake = critic(real_BCHW), critic(fake_BCHW)
    else:
        on_real, on_fake = critic(torch.cat([real_BCHW, fake_BCHW])).chunk(2)
    return 0.5 * (on_fake.square().mean() + (on_real - 1).square().mean())


@dataclass(frozen=True)
class Guarded:
    """Clips what each image learns from its critic, and adds noise: FedMed-GAN's protection.

    Each image's gradient is clipped to `clip` / B, and Gaussian noise of `noise` times that is
    added. By itself this is no (epsilon, delta) guarantee. Wang et al. 2023.
    """

    clip: float
    noise: float

    def __call__(self, fake_B1HW: Tensor) -> Tensor:
        """Give the images, whose gradients will be clipped and noised."""
        guarded = fake_B1HW.view_as(fake_B1HW)
        guarded.register_hook(self._protected)  # pyright: ignore[reportUnknownMemberType]
        return guarded

    def _protected(self, gradient_B1HW: Tensor) -> Tensor:
        bound = self.clip / len(gradient_B1HW)
        norms_B = gradient_B1HW.square().sum((1, 2, 3)).sqrt().clamp_min(SMALLEST)
        scale_B = (bound / norms_B).clamp_max(1.0)
        clipped = gradient_B1HW * scale_B[:, None, None, None]
        return clipped + torch.randn_like(clipped) * (self.noise * bound)


def realism(critic: nn.Module, source: Tensor, fake: Tensor) -> Tensor:
    """Give the generator's loss against a critic that learns nothing from it, summed over cases."""
    with frozen(critic):
        verdict = critic(torch.cat([source, fake], 1))
    return (verdict - 1).square().flatten(1).mean(1).sum()


def unit(image: Tensor) -> Tensor:
    """Bring an image from [-1, 1] to [0, 1]."""
    return ((image + 1) / 2).clamp(0, 1)


def groups_of(model: nn.Module) -> Mapping[str, Filter]:
    """Name the parameter groups of a translator; "all" leaves the critics out."""
    assert isinstance(model, Translator)
    head = list(model.generator.stages().values())[-1]
    groups = {name: starting_with(f"generator.{name}.") for name in GROUPS}
    critic = starting_with("critics.")
    norm = frozenset(n for n in batch_norm_names(model) if not critic(n))
    return groups | {
        "norm": among(norm),
        "critic": critic,
        "head": starting_with(*(f"generator.{prefix}" for prefix in head)),
        "upper": starting_with("generator.bottleneck_late.", "generator.decoder."),
        "all": starting_with("generator."),
    }
