"""Segmentation: a U-Net outlines structures; a site is trained and scored on its own ones."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from grandrounds.data.case import Cohort, Split
from grandrounds.data.elements import Elements
from grandrounds.messages import CaseScore
from grandrounds.metrics.segmentation import dice, hd95
from grandrounds.metrics.summary import summary
from grandrounds.models.norm import batch_norm_names
from grandrounds.models.unet import (
    BOTTLENECK,
    DECODER,
    ENCODER,
    OUTPUT,
    UNet,
    UNetShape,
    build_unet,
    slid,
)
from grandrounds.seeds import seed_for
from grandrounds.tasks.checks import check_shares, check_size, require
from grandrounds.tasks.delineation import Channels, Delineation, check_label
from grandrounds.tasks.overlap import cross_entropy, dice_loss
from grandrounds.tasks.staged import PART, StagedTask
from grandrounds.tasks.task import NO_GUESTS, Batch, Labels, Picture
from grandrounds.tasks.volumes import (
    THRESHOLD,
    Parts,
    Volume,
    Volumes,
    as_slices,
    greys,
    volumes_of,
)
from grandrounds.weights import Filter, among, starting_with

AT_ONCE = 16  # slices, or patches of a volume, that the network predicts at a time


@dataclass(frozen=True)
class Segmentation:
    """Options of the segmentation task; `model` = "small" is a network for CPUs.

    `channels` are those of each level of the U-Net, the finest first; with `dims` = 3 it trains on
    patches of `patch` voxels (slices, rows, columns) and slides over whole volumes.
    """

    metric: ClassVar[str] = "dice"
    sizes: ClassVar[Mapping[str, Mapping[str, object]]] = {"small": {"channels": [8, 16, 32, 64]}}

    kind: Literal["segmentation"] = "segmentation"
    model: Literal["unet", "small"] = "unet"
    channels: tuple[int, ...] = (32, 64, 128, 256, 512)
    dims: Literal[2, 3] = 2
    patch: tuple[int, int, int] = (16, 64, 64)
    norm: Literal["instance", "batch"] = "instance"
    dropout: float = 0.0
    flip: float = 0.5

    @property
    def has_statistics(self) -> bool:
        """Batch norm keeps running statistics, instance norm does not."""
        return self.norm == "batch"

    def check(self, elements: Elements, sites: Mapping[str, Sequence[str]]) -> None:
        """Refuse what no U-Net can be made of or trained on. Raises `BadStudy`."""
        require(
            len(self.channels) >= 2 and min(self.channels) >= 2,
            f"task.channels is {list(self.channels)}; it needs two levels or more, each 2 or more",
        )
        check_shares(self, ("dropout", "flip"))
        halvings = 2 ** (len(self.channels) - 1)
        check_size(elements, least=2 * halvings, multiple=halvings)
        if self.dims == 3:
            self._check_patch(elements, halvings)
        for site, labels in sites.items():
            for label in labels:
                check_label(site, label, elements)

    def _check_patch(self, elements: Elements, halvings: int) -> None:
        fits = all(own <= whole for own, whole in zip(self.patch[1:], elements.size, strict=True))
        whole = all(voxels > 0 and voxels % halvings == 0 for voxels in self.patch)
        require(
            fits and whole and max(self.patch) > halvings,
            f"task.patch is {list(self.patch)}; its three numbers must be multiples of {halvings}, "
            f"one above it, rows and columns within elements.size ({list(elements.size)})",
        )

    def bind(
        self, elements: Elements, sites: Labels, guests: Labels = NO_GUESTS
    ) -> "SegmentationTask":
        """Make a consortium's task; `sites` maps each, in roster order, to its task labels."""
        own = {
            site: tuple(Delineation.parse(label) for label in labels)
            for site, labels in {**sites, **guests}.items()
        }
        trained = sum((own[site] for site in sites), ())
        channels = Channels.of(trained, elements.contrasts)
        return SegmentationTask(self, channels, own, elements.spacing)


@dataclass(frozen=True)
class SegmentationTask(StagedTask):
    """Outlines structures on one or more contrasts; a structure is a sigmoid of its own."""

    options: Segmentation
    channels: Channels
    delineations: Mapping[str, tuple[Delineation, ...]]
    spacing: tuple[float, float]

    @property
    def cases_at_once(self) -> int:
        """Score one session at a time: a case is its whole volume."""
        return 1

    @property
    def shape(self) -> UNetShape:
        """Give the network's dimensions."""
        o = self.options
        return UNetShape(
            inputs=len(self.channels.contrasts),
            outputs=len(self.channels.structures),
            channels=o.channels,
            dims=o.dims,
            norm=o.norm,
            dropout=o.dropout,
        )

    def build(self, seed: int) -> UNet:
        """Build the U-Net; the same seed gives the same bits."""
        return build_unet(self.shape, seed=seed_for(seed, "unet"))

    def blank(self, size: tuple[int, int]) -> Batch:
        """Give a batch of one case without content: a slice, or a patch that is as deep as any."""
        axes = size if self.options.dims == 2 else (self.options.patch[0], *size)
        structures = len(self.channels.structures)
        return {
            "source": torch.zeros(1, len(self.channels.contrasts), *axes),
            "target": torch.zeros(1, structures, *axes),
            "asked": torch.ones(1, structures),
        }

    def loss(self, output: Tensor, batch: Batch) -> Tensor:
        """Give Dice loss plus cross-entropy of logits. Isensee et al. 2021."""
        target, asked = batch["target"], batch["asked"]
        return dice_loss(output, target, asked) + cross_entropy(output, target, asked)

    def predict(self, model: nn.Module, batch: Batch) -> Tensor:
        """Give probabilities in the target's shape, some slices or patches at a time."""
        model.eval()
        source = batch["source"]
        if self.options.dims == 3:
            return self.read(slid(model, source, self.options.patch, at_once=AT_ONCE))
        starts = range(0, len(source), AT_ONCE)
        return self.read(torch.cat([model(source[first : first + AT_ONCE]) for first in starts]))

    def read(self, output: Tensor) -> Tensor:
        """Turn logits into probabilities."""
        return output.float().sigmoid()

    def score(self, prediction: Tensor, batch: Batch) -> dict[str, Tensor]:
        """Score the case: Dice and HD95 (mm), averaged over its structures, and Dice of each.

        A pixel belongs to a structure from probability 0.5 on.
        """
        asked = batch["asked"][0] > 0
        found = as_slices(prediction)[:, asked] >= THRESHOLD
        real = as_slices(batch["target"])[:, asked] > 0
        dice_S, hd95_S = dice(found, real).cpu(), hd95(found, real, self.spacing)
        names = [n for n, own in zip(self.channels.structures, asked, strict=True) if own]
        each = {f"dice_{n}": d[None] for n, d in zip(names, dice_S, strict=True)}
        means = {"dice": dice_S.mean()[None], "hd95": hd95_S.mean()[None]}
        return means | (each if len(each) > 1 else {})

    def summary(self, scores: Sequence[CaseScore]) -> dict[str, float]:
        """Average over patients, then tasks, then sites; a score of some tasks over those."""
        names = dict.fromkeys(name for score in scores for name in score.values)
        return {name: summary(_only(name, scores))[name] for name in names}

    def picture(self, prediction: Tensor, batch: Batch) -> Picture:
        """Give the middle slice, (H, W) in [0, 1]: its first contrast, and structures as greys."""
        source, target = as_slices(batch["source"]), as_slices(batch["target"])
        middle, asked = len(source) // 2, batch["asked"][0] > 0
        used = source.flatten(2).any(2).any(0)
        images = {
            "source": source[middle, used][0],
            "target": greys(target[middle, asked]),
            "prediction": greys(as_slices(prediction)[middle, asked]),
        }
        return {name: image.cpu().numpy() for name, image in images.items()}

    def groups(self, model: nn.Module) -> Mapping[str, Filter]:
        """Name the parameter groups; "output" makes one logit for each structure."""
        prefixes = {"encoder": ENCODER, "bottleneck": BOTTLENECK, "decoder": DECODER}
        groups = {name: starting_with(f"{PART}.{prefix}") for name, prefix in prefixes.items()}
        output = starting_with(f"{PART}.{OUTPUT}.")
        return groups | {
            "output": output,
            "norm": among(batch_norm_names(model)),
            "head": output,
            "upper": starting_with(f"{PART}.{DECODER}", f"{PART}.{OUTPUT}."),
            "all": starting_with(f"{PART}."),
        }

    def training_examples(self, cohorts: Sequence[Cohort]) -> Parts:
        """Give each training slice once, or patches; the task is drawn when one is used."""
        o = self.options
        patch = o.patch if o.dims == 3 else None
        return Parts(self._volumes(cohorts, "train", each=False), self.channels, o.flip, patch)

    def evaluation_examples(self, cohorts: Sequence[Cohort], split: Split) -> Volumes:
        """Give each session of a split once for each of its site's tasks that it can serve."""
        return Volumes(self._volumes(cohorts, split, each=True), self.channels, self.options.dims)

    def _volumes(
        self, cohorts: Sequence[Cohort], split: Split, *, each: bool
    ) -> tuple[Volume, ...]:
        found = [volumes_of(c, split, self.delineations[c.site], each=each) for c in cohorts]
        return sum(found, ())


def _only(name: str, scores: Sequence[CaseScore]) -> list[CaseScore]:
    return [replace(s, values={name: s.values[name]}) for s in scores if name in s.values]
