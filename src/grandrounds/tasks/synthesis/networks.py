"""The critics of a study, one for each task or a single one: which judges which rows of a batch."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias, cast

import torch
from torch import Tensor, nn

from grandrounds.core.seeds import seed_for
from grandrounds.core.weights import Filter, name_in, name_starts
from grandrounds.models.discriminator import Discriminator, build_discriminator
from grandrounds.models.generator import Generator, GeneratorShape, build_generator
from grandrounds.models.layers import Norm, batch_norm_names
from grandrounds.models.translation_unet import (
    TranslationUNet,
    TranslationUNetShape,
    build_translation_unet,
)
from grandrounds.tasks.synthesis.examples import ContrastPair
from grandrounds.tasks.task import Batch

if TYPE_CHECKING:
    pass


Shape: TypeAlias = GeneratorShape | TranslationUNetShape
Single: TypeAlias = Generator | TranslationUNet
CODED = "coded-unet"  # driven by the direction of translation, whatever codes the study gives
CONTRASTS = "contrasts-unet"
UNETS = ("unet", CONTRASTS, CODED)
ABSENT = -1.0  # what an image that is not there looks like


class TwoWay(nn.Module):
    """One network for each direction between two contrasts. Zhu et al. 2017 (CycleGAN)."""

    def __init__(self, there: Single, back: Single) -> None:
        super().__init__()
        self.there = there
        self.back = back

    def forward(self, source_B1HW: Tensor, code_BK: Tensor) -> Tensor:
        """Translate each image in its own direction, which the first of two code values says."""
        made_B1HW = torch.empty_like(source_B1HW)
        for network, rows in zip((self.there, self.back), _rows(code_BK), strict=True):
            if rows:
                made_B1HW[rows] = network(source_B1HW[rows], code_BK[rows])
        return made_B1HW

    def stages(self) -> dict[str, tuple[str, ...]]:
        """Name the two networks; nothing can be cut between them."""
        return {"there": ("there.",), "back": ("back.",)}


def _rows(code_BK: Tensor) -> tuple[list[int], list[int]]:
    """Deal rows to the two directions; where nothing is computed, all to the first."""
    if code_BK.is_meta:
        return list(range(len(code_BK))), []
    there = cast(list[bool], (code_BK[:, 0] > 0).tolist())  # pyright: ignore[reportUnknownMemberType]
    return [n for n, way in enumerate(there) if way], [n for n, way in enumerate(there) if not way]


SynthesisNetwork: TypeAlias = Single | TwoWay


def build_network(shape: Shape, *, seed: int, two_way: bool) -> SynthesisNetwork:
    """Build a study's generator; the same seed gives the same bits."""
    there = _single(shape, seed_for(seed, "generator"))
    return TwoWay(there, _single(shape, seed_for(seed, "back"))) if two_way else there


def _single(shape: Shape, seed: int) -> Single:
    if isinstance(shape, TranslationUNetShape):
        return build_translation_unet(shape, seed=seed)
    return build_generator(shape, seed=seed)


def one_channel_each(image_B1HW: Tensor, contrast_B: Tensor, contrasts: int) -> Tensor:
    """Give one channel for each contrast, all absent but the image's own; (B, C, H, W)."""
    channels_BCHW = image_B1HW.new_full(
        (*image_B1HW.shape[:1], contrasts, *image_B1HW.shape[2:]), ABSENT
    )
    rows_B = torch.arange(len(image_B1HW), device=image_B1HW.device)
    return channels_BCHW.index_put((rows_B, contrast_B), image_B1HW[:, 0])


def own_channel(images_BCHW: Tensor, contrast_B: Tensor) -> Tensor:
    """Read each row's channel of its contrast; (B, 1, H, W)."""
    rows_B = torch.arange(len(images_BCHW), device=images_BCHW.device)
    return images_BCHW[rows_B, contrast_B][:, None]


SINGLE = "any"


@dataclass(frozen=True)
class Critics:
    """The critics of a study; without paired images the ways back have critics too."""

    contrasts: tuple[str, ...]
    per_task: bool
    both_ways: bool

    def of(self, pair: ContrastPair) -> str:
        """Name the critic of a pair."""
        return pair.label if self.per_task else SINGLE

    def names(self, pairs: Iterable[ContrastPair]) -> tuple[str, ...]:
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

    def pairs(self, batch: Batch) -> list[ContrastPair]:
        """Read the pair of each row."""
        found = cast(list[list[int]], batch["pair"].tolist())  # pyright: ignore[reportUnknownMemberType]
        return [
            ContrastPair(self.contrasts[source], self.contrasts[target]) for source, target in found
        ]

    def rows(self, pairs: Sequence[ContrastPair]) -> dict[str, Tensor]:
        """Map each critic that pairs concern to its rows."""
        rows: dict[str, list[int]] = {}
        for row, pair in enumerate(pairs):
            rows.setdefault(self.of(pair), []).append(row)
        return {name: torch.tensor(found) for name, found in rows.items()}


GROUPS = ("mapper", "encoder", "bottleneck_early", "bottleneck_late", "decoder", "personal")


class Translator(nn.Module):
    """A generator and the critics that judge it, in one module whose names tell them apart."""

    generator: SynthesisNetwork
    critics: nn.ModuleDict

    def __init__(self, generator: SynthesisNetwork, critics: Mapping[str, Discriminator]) -> None:
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
    groups = {name: name_starts(f"generator.{name}.") for name in GROUPS}
    critic = name_starts("critics.")
    norm = frozenset(n for n in batch_norm_names(model) if not critic(n))
    return groups | {
        "norm": name_in(norm),
        "critic": critic,
        "head": name_starts(*(f"generator.{prefix}" for prefix in head)),
        "upper": name_starts("generator.bottleneck_late.", "generator.decoder."),
        "all": name_starts("generator."),
    }
