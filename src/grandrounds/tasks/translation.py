"""A generator with its critics, and the least-squares losses between them. Mao et al. 2017."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from grandrounds.models.discriminator import Discriminator, frozen
from grandrounds.models.generator import Generator
from grandrounds.models.norm import batch_norm_names
from grandrounds.weights import Filter, among, starting_with

GROUPS = ("mapper", "encoder", "bottleneck_early", "bottleneck_late", "decoder", "personal")


class Translator(nn.Module):
    """A generator and the critics that judge it, in one module whose names tell them apart."""

    generator: Generator
    critics: nn.ModuleDict

    def __init__(self, generator: Generator, critics: Mapping[str, Discriminator]) -> None:
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
    groups = {name: starting_with(f"generator.{name}.") for name in GROUPS}
    critic = starting_with("critics.")
    norm = frozenset(n for n in batch_norm_names(model) if not critic(n))
    return groups | {
        "norm": among(norm),
        "critic": critic,
        "head": starting_with("generator.decoder.2."),
        "upper": starting_with("generator.bottleneck_late.", "generator.decoder."),
        "all": starting_with("generator."),
    }
