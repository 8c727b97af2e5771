"""Synthesis trains on slices in pairs of contrasts, with a code for the site and the pair."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil
from typing import Literal, TypeAlias

import numpy as np
import torch
from torch import Generator, Tensor, nn

from grandrounds.core.errors import BadSite, require
from grandrounds.core.sentence import phrase
from grandrounds.data.acquisition import ScanProtocol
from grandrounds.data.cohort import Cohort
from grandrounds.data.elements import Elements
from grandrounds.data.protocol import NO_PROTOCOLS, Protocols
from grandrounds.tasks.synthesis.protocol_code import SIZE, protocol_code
from grandrounds.tasks.task import Batch, Case, Slice, check_contrasts, draw_index

Codes: TypeAlias = Literal["both", "site", "task", "none", "protocol"]


@dataclass(frozen=True)
class ContrastPair:
    """One synthesis task: the contrast that is made, and the one it is made from."""

    source: str
    target: str

    @staticmethod
    def parse(label: str) -> "ContrastPair":
        """Read a label such as "T1w->T2w". Raises `ValueError`."""
        source, target = (word.strip() for word in label.split("->"))
        return ContrastPair(source, target)

    @property
    def label(self) -> str:
        return f"{self.source}->{self.target}"

    @property
    def reversed(self) -> "ContrastPair":
        return ContrastPair(self.target, self.source)


@dataclass(frozen=True)
class SiteTaskCode:
    """Turns (site, pair) into the code that the mapper reads.

    It is the one-hots of site, source and target in a row. `codes` says which of them the network
    gets; the others are zero. Dalmaz et al. 2024. With "protocol" the codes of how source and
    target were scanned stand in place of the site's, and a site's name plays no part. With
    "direction" it is the one-hot of the pair among `pairs`, without the site. The code of a site
    that is not among `sites` is the mean of theirs; with a `reader`, that site's code is used for
    every site.
    """

    sites: tuple[str, ...]
    contrasts: tuple[str, ...]
    codes: Codes | Literal["direction"] = "both"
    pairs: tuple[ContrastPair, ...] = ()
    reader: str = ""

    @property
    def size(self) -> int:
        if self.codes == "direction":
            return len(self.pairs)
        return self._first + 2 * len(self.contrasts)

    @property
    def _first(self) -> int:
        """Return how many values stand before the one-hots of source and target."""
        return 2 * SIZE if self.codes == "protocol" else len(self.sites)

    def code(self, site: str, pair: ContrastPair, protocols: Protocols = NO_PROTOCOLS) -> Tensor:
        """Return the code, (K,); `protocols` say of contrasts how a session was scanned."""
        code = torch.zeros(self.size)
        if self.codes == "direction":
            code[self.pairs.index(pair)] = 1.0
        if self.codes in ("both", "site"):
            code[: len(self.sites)] = self._site_code(self.reader or site)
        if self.codes == "protocol":
            scans = [protocols.get(c, ScanProtocol()) for c in (pair.source, pair.target)]
            values = [value for scan in scans for value in protocol_code(scan)]
            code[: self._first] = torch.tensor(values)
        if self.codes in ("both", "task", "protocol"):
            code[self._first + self.contrasts.index(pair.source)] = 1.0
            code[self._first + len(self.contrasts) + self.contrasts.index(pair.target)] = 1.0
        return code

    def _site_code(self, site: str) -> Tensor:
        if site not in self.sites:
            return torch.full((len(self.sites),), 1 / len(self.sites))
        return torch.tensor([float(name == site) for name in self.sites])


def check_pair(site: str, label: str, elements: Elements) -> None:
    """Refuse a label that is not a pair of the study's contrasts. Raises `BadStudy`."""
    where = f"site '{site}', task '{label}'"
    require(
        label.count("->") == 1, f'{where}: write it as "SOURCE->TARGET", for example "T1w->T2w"'
    )
    pair = ContrastPair.parse(label)
    check_contrasts(where, (pair.source, pair.target), elements)
    require(pair.source != pair.target, f"{where}: source and target are the same contrast")


@dataclass(frozen=True)
class Augmentation:
    """The changes to a slice before the network reads it.

    `flip` is the probability of a left-right flip in training; `intensity` = "slice" scales each
    slice to its own range in 8 bits; `crop` = "released" enlarges by 286/256 and crops at random
    as the released pFLSynth code does (there in evaluation too): in 8 bits, by Pillow's bicubic
    kernel (a = -0.5), never up to the last row or column. "resize-crop" is the same in floating
    point, by PyTorch's kernel (a = -0.75), with every crop.
    """

    flip: float = 0.5
    intensity: Literal["volume", "slice"] = "volume"
    crop: Literal["none", "resize-crop", "released"] = "none"

    def __call__(self, images_CHW: Tensor, generator: Generator, *, training: bool) -> Tensor:
        """Apply to the source and target of one sample, (2, H, W) in [0, 1]."""
        if self.intensity == "slice":
            images_CHW = _eight_bit(images_CHW)
        if self.crop == "resize-crop":
            images_CHW = _crop(_enlarged(images_CHW), images_CHW, generator, left_out=0)
        if self.crop == "released":
            images_CHW = _crop(_enlarged_in_bytes(images_CHW), images_CHW, generator, left_out=1)
        if training and float(torch.rand((), generator=generator)) < self.flip:
            images_CHW = images_CHW.flip(-1)
        return images_CHW


def _eight_bit(images_CHW: Tensor) -> Tensor:
    low, high = images_CHW.amin((1, 2), keepdim=True), images_CHW.amax((1, 2), keepdim=True)
    return ((images_CHW - low) / (high - low).clamp_min(1e-6) * 255).round() / 255


def _enlarged(images_CHW: Tensor) -> Tensor:
    return nn.functional.interpolate(
        images_CHW[None], _enlarged_size(images_CHW), mode="bicubic", align_corners=False
    )[0].clamp(0, 1)


def _enlarged_in_bytes(images_CHW: Tensor) -> Tensor:
    bytes_CHW = (images_CHW * 255).round().to(torch.uint8)
    large = nn.functional.interpolate(
        bytes_CHW[None],
        _enlarged_size(images_CHW),
        mode="bicubic",
        align_corners=False,
        antialias=True,  # Pillow's kernel; there is nothing to smooth in what is enlarged
    )
    return large[0] / 255


def _enlarged_size(images_CHW: Tensor) -> tuple[int, int]:
    height, width = images_CHW.shape[1:]
    return ceil(height * 286 / 256), ceil(width * 286 / 256)


def _crop(large: Tensor, images_CHW: Tensor, generator: Generator, *, left_out: int) -> Tensor:
    """Return a random part of the enlarged images, of the size that they had."""
    height, width = images_CHW.shape[1:]
    places = [
        n - size + 1 - left_out for n, size in zip(large.shape[1:], (height, width), strict=True)
    ]
    top, left = (int(torch.randint(count, (), generator=generator)) for count in places)
    return large[:, top : top + height, left : left + width]


@dataclass(frozen=True)
class Slices:
    """The slices of a translation task as examples.

    A generator draws one of a slice's pairs where there are several. Each batch without a generator
    includes the mask that `mask` names.
    """

    slices: tuple[Slice[ContrastPair], ...]
    coding: SiteTaskCode
    augmentation: Augmentation
    mask: str = ""

    def __len__(self) -> int:
        return len(self.slices)

    def batch(self, indices: Sequence[int], generator: Generator | None) -> Batch:
        """Collate slices.

        Source and target are (B, 1, H, W) in [-1, 1], code (B, K), pair (B, 2) of contrasts.
        """
        chosen = [self.slices[index] for index in indices]
        draw = generator or Generator().manual_seed(0)
        choices = [item.visit.labels for item in chosen]
        pairs = [labels[draw_index(len(labels), draw)] for labels in choices]
        images = [self._images(s, p, draw, generator) for s, p in zip(chosen, pairs, strict=True)]
        images_BCHW = torch.stack(images).mul_(2).sub_(1)
        contrasts = self.coding.contrasts
        inside = self._inside(chosen) if self.mask and generator is None else {}
        return inside | {
            "source": images_BCHW[:, :1].contiguous(),
            "target": images_BCHW[:, 1:].contiguous(),
            "code": torch.stack(
                [
                    self.coding.code(s.visit.site, p, s.visit.session.protocols)
                    for s, p in zip(chosen, pairs, strict=True)
                ]
            ),
            "pair": torch.tensor(
                [[contrasts.index(p.source), contrasts.index(p.target)] for p in pairs]
            ),
        }

    def _inside(self, chosen: Sequence[Slice[ContrastPair]]) -> Batch:
        masks = [item.visit.session.masks[self.mask][item.index] > 0 for item in chosen]
        return {"mask": torch.from_numpy(np.stack(masks))[:, None]}  # pyright: ignore[reportUnknownMemberType]

    def _images(
        self,
        item: Slice[ContrastPair],
        pair: ContrastPair,
        draw: Generator,
        training: Generator | None,
    ) -> Tensor:
        contrasts = (pair.source, pair.target)
        both = [item.visit.session.image(item.index, contrast) for contrast in contrasts]
        images_CHW = torch.from_numpy(np.stack(both))  # pyright: ignore[reportUnknownMemberType]
        return self.augmentation(images_CHW, draw, training=training is not None)

    def case(self, index: int) -> Case:
        return self.slices[index].case()


def check_masks(cohorts: Sequence[Cohort], mask: str) -> None:
    """Refuse a site with sessions that lack a mask needed for scores. Raises `BadSite`."""
    for cohort in cohorts if mask else ():
        lacking = sum(mask not in session.masks for session in cohort)
        if lacking:
            raise BadSite(
                f"site '{cohort.site}': {lacking} of its sessions have no {mask} mask, which "
                f'task.masked = "{mask}" needs; add them, or set task.masked = "none"',
                safe=phrase(
                    "{number} sessions lack the mask that task.masked needs", number=lacking
                ),
            )
