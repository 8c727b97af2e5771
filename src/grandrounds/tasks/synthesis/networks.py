"""A study of synthesis chooses one of these generators and has critics for its tasks."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias, cast

import torch
from torch import Tensor, nn

from grandrounds.core.seeds import seed_for
from grandrounds.core.weights import Filter, name_in, name_starts
from grandrounds.models.discriminator import Discriminator, build_discriminator
from grandrounds.models.generator import Generator, GeneratorShape, build_generator
from grandrounds.models.imported import Imported
from grandrounds.models.norms import Norm, batch_norm_names
from grandrounds.models.translation_unet import (
    TranslationUNet,
    TranslationUNetShape,
    build_translation_unet,
)
from grandrounds.tasks.synthesis.examples import ContrastPair
from grandrounds.tasks.task import Batch

Shape: TypeAlias = GeneratorShape | TranslationUNetShape
Single: TypeAlias = Generator | TranslationUNet
CODED = "coded-unet"  # its code is the direction of translation, whatever `codes` the study has
CONTRASTS = "contrasts-unet"
UNETS = ("unet", CONTRASTS, CODED)
SINGLE = "any"  # a critic of all pairs
GROUPS = ("mapper", "encoder", "bottleneck_early", "bottleneck_late", "decoder", "personal")
ABSENT = -1.0  # the value of all pixels of a missing image


class TwoWay(nn.Module):
    """One network for each direction between two contrasts. Zhu et al. 2017 (CycleGAN)."""

    def __init__(self, there: Single, back: Single) -> None:
        super().__init__()
        self.there = there
        self.back = back

    def forward(self, source_B1HW: Tensor, code_BK: Tensor) -> Tensor:
        """Translate each image in the direction that the first of two code values gives."""
        made_B1HW = torch.empty_like(source_B1HW)
        for network, rows in zip((self.there, self.back), _rows(code_BK), strict=True):
            if rows:
                made_B1HW[rows] = network(source_B1HW[rows], code_BK[rows])
        return made_B1HW

    def stages(self) -> dict[str, tuple[str, ...]]:
        """Return the two networks as stages; a cut between them is impossible."""
        return {"there": ("there.",), "back": ("back.",)}


def _rows(code_BK: Tensor) -> tuple[list[int], list[int]]:
    """Return the rows of the two directions; on a meta device all belong to the first."""
    if code_BK.is_meta:
        return list(range(len(code_BK))), []
    there = cast(list[bool], (code_BK[:, 0] > 0).tolist())  # pyright: ignore[reportUnknownMemberType]
    return [n for n, way in enumerate(there) if way], [n for n, way in enumerate(there) if not way]


SynthesisNetwork: TypeAlias = Single | TwoWay | Imported


def build_network(shape: Shape, *, seed: int, two_way: bool) -> SynthesisNetwork:
    """Build a study's generator; the same seed gives the same bits."""
    there = _single(shape, seed_for(seed, "generator"))
    return TwoWay(there, _single(shape, seed_for(seed, "back"))) if two_way else there


def _single(shape: Shape, seed: int) -> Single:
    if isinstance(shape, TranslationUNetShape):
        return build_translation_unet(shape, seed=seed)
    return build_generator(shape, seed=seed)


class Translator(nn.Module):
    """A generator and its critics in one module, with different prefixes of names."""

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


def groups_of(model: nn.Module) -> Mapping[str, Filter]:
    """Return the parameter groups of a translator; "all" excludes the critics."""
    assert isinstance(model, Translator)
    assert not isinstance(model.generator, Imported), "its groups are the study's"
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


@dataclass(frozen=True)
class Critics:
    """The critics of a study; without paired images the reverse directions have critics, too."""

    contrasts: tuple[str, ...]
    per_task: bool
    both_ways: bool

    def of(self, pair: ContrastPair) -> str:
        """Return the name of a pair's critic."""
        return pair.label if self.per_task else SINGLE

    def names(self, pairs: Iterable[ContrastPair]) -> tuple[str, ...]:
        """Return the names of the pairs' critics, each once."""
        ways = (w for p in pairs for w in ((p, p.reversed) if self.both_ways else (p,)))
        return tuple(dict.fromkeys(self.of(way) for way in ways))

    def build(
        self, names: Iterable[str], *, width: int, layers: int, norm: Norm, seed: int
    ) -> dict[str, Discriminator]:
        """Build critics; with paired images they read the source beside a target."""
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
        indices = cast(list[list[int]], batch["pair"].tolist())  # pyright: ignore[reportUnknownMemberType]
        return [
            ContrastPair(self.contrasts[source], self.contrasts[target])
            for source, target in indices
        ]

    def rows(self, pairs: Sequence[ContrastPair]) -> dict[str, Tensor]:
        """Return the rows of each critic that has any of the pairs."""
        rows: dict[str, list[int]] = {}
        for row, pair in enumerate(pairs):
            rows.setdefault(self.of(pair), []).append(row)
        return {name: torch.tensor(indices) for name, indices in rows.items()}


def unit(image: Tensor) -> Tensor:
    """Map an image from [-1, 1] to [0, 1]."""
    return ((image + 1) / 2).clamp(0, 1)


def one_channel_each(image_B1HW: Tensor, contrast_B: Tensor, contrasts: int) -> Tensor:
    """Return one channel for each contrast, all absent but the image's; (B, C, H, W)."""
    channels_BCHW = image_B1HW.new_full(
        (*image_B1HW.shape[:1], contrasts, *image_B1HW.shape[2:]), ABSENT
    )
    rows_B = torch.arange(len(image_B1HW), device=image_B1HW.device)
    return channels_BCHW.index_put((rows_B, contrast_B), image_B1HW[:, 0])


def own_channel(images_BCHW: Tensor, contrast_B: Tensor) -> Tensor:
    """Read each row's channel of its contrast; (B, 1, H, W)."""
    rows_B = torch.arange(len(images_BCHW), device=images_BCHW.device)
    return images_BCHW[rows_B, contrast_B][:, None]
