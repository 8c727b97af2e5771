"""The generators that a synthesis study can choose, and how images enter and leave each of them."""

from typing import TYPE_CHECKING, TypeAlias, cast

import torch
from torch import Tensor, nn

from grandrounds.models.generator import Generator, GeneratorShape, build_generator
from grandrounds.models.norm import Norm
from grandrounds.models.translation_unet import TranslationUnet, UnetShape, build_translation_unet
from grandrounds.seeds import seed_for
from grandrounds.tasks.coding import Coding

if TYPE_CHECKING:
    from grandrounds.tasks.synthesis import Synthesis

Shape: TypeAlias = GeneratorShape | UnetShape
Single: TypeAlias = Generator | TranslationUnet
CODED = "coded-unet"  # driven by the direction of translation, whatever codes the study gives
CONTRASTS = "contrasts-unet"
UNETS = ("unet", CONTRASTS, CODED)
ABSENT = -1.0  # what an image that is not there looks like


def shape_of(options: "Synthesis", coding: Coding, norm: Norm) -> Shape:
    """Give the dimensions of the generator that a study asks for."""
    if options.generator in UNETS:
        return _unet(options, coding, norm)
    return GeneratorShape(
        code_size=coding.size,
        width=options.width,
        blocks=options.blocks,
        latent=options.latent,
        mapper_layers=options.mapper_layers,
        personalised=options.generator == "personalised",
        norm=norm,
        padding=options.padding,
        dropout=options.dropout,
        equalised=options.equalised,
        channel_weights=options.channel_weights,
    )


def _unet(options: "Synthesis", coding: Coding, norm: Norm) -> UnetShape:
    images = len(coding.contrasts) if options.generator == CONTRASTS else 1
    return UnetShape(
        inputs=images,
        outputs=images,
        width=options.unet_width,
        levels=options.unet_levels,
        code_size=coding.size if options.generator == CODED else 0,
        latent=options.latent,
        norm=norm,
    )


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


Network: TypeAlias = Single | TwoWay


def build_network(shape: Shape, *, seed: int, two_way: bool) -> Network:
    """Build a study's generator; the same seed gives the same bits."""
    there = _single(shape, seed_for(seed, "generator"))
    return TwoWay(there, _single(shape, seed_for(seed, "back"))) if two_way else there


def _single(shape: Shape, seed: int) -> Single:
    if isinstance(shape, UnetShape):
        return build_translation_unet(shape, seed=seed)
    return build_generator(shape, seed=seed)


def spread(image_B1HW: Tensor, contrast_B: Tensor, contrasts: int) -> Tensor:
    """Give one channel for each contrast, all absent but the image's own; (B, C, H, W)."""
    channels_BCHW = image_B1HW.new_full(
        (*image_B1HW.shape[:1], contrasts, *image_B1HW.shape[2:]), ABSENT
    )
    rows_B = torch.arange(len(image_B1HW), device=image_B1HW.device)
    return channels_BCHW.index_put((rows_B, contrast_B), image_B1HW[:, 0])


def chosen(images_BCHW: Tensor, contrast_B: Tensor) -> Tensor:
    """Read each row's channel of its contrast; (B, 1, H, W)."""
    rows_B = torch.arange(len(images_BCHW), device=images_BCHW.device)
    return images_BCHW[rows_B, contrast_B][:, None]
