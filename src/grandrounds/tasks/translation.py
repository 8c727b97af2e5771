"""A generator with its critics in one module, and the groups of their parameters."""

from collections.abc import Mapping

from torch import Tensor, nn

from grandrounds.models.discriminator import Discriminator
from grandrounds.models.norm import batch_norm_names
from grandrounds.tasks.networks import Network
from grandrounds.weights import Filter, among, starting_with

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
