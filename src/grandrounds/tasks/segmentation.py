"""A U-Net segments structures; a site trains and scores only those that it has masks of."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import ClassVar, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Generator, Tensor, nn
from torch.nn import functional

from grandrounds.core.messages import CaseScore
from grandrounds.core.seeds import seed_for
from grandrounds.core.weights import Filter, name_in, name_starts
from grandrounds.data.cohort import Cohort, Session, SplitName
from grandrounds.data.elements import Elements
from grandrounds.models.imported import Imported
from grandrounds.models.norms import batch_norm_names
from grandrounds.models.segmentation_unet import (
    BOTTLENECK,
    DECODER,
    ENCODER,
    OUTPUT,
    UNet,
    UNetShape,
    build_unet,
    slid,
)
from grandrounds.tasks.metrics import dice, hd95, hd95_3d, mean_where_scored
from grandrounds.tasks.outside import (
    Known,
    Outside,
    build_loss,
    build_outside,
    groups_from_outside,
    loss_from_outside,
)
from grandrounds.tasks.task import (
    NO_SITES,
    PART,
    Batch,
    Case,
    Labels,
    Picture,
    Slice,
    StagedTask,
    Visit,
    check_contrasts,
    check_shares,
    check_size,
    draw_index,
    list_slices,
    list_visits,
    require,
)

EMPTY = "empty"
_THRESHOLD = 0.5  # of a structure's probability, for its pixels to count as segmented
_SLICES_AT_ONCE = 16  # slices, or patches of a volume, that the network predicts at a time


def dice_loss(logits: Tensor, target: Tensor, asked_BS: Tensor) -> Tensor:
    """Return the Dice loss over the whole batch, the mean over the structures in `asked_BS`.

    Milletari et al. 2016.
    """
    from monai.losses.dice import DiceLoss  # an import that takes seconds

    mask = _spread(asked_BS, logits)
    loss = DiceLoss(batch=True, reduction="none")(logits.sigmoid() * mask, target * mask)
    present_S = asked_BS.amax(0)
    return (loss.flatten() * present_S).sum() / present_S.sum()


def cross_entropy(logits: Tensor, target: Tensor, asked_BS: Tensor) -> Tensor:
    """Return the binary cross-entropy, the mean over the pixels of the structures in `asked_BS`."""
    entropy = functional.binary_cross_entropy_with_logits(logits, target, reduction="none")
    return (entropy.flatten(2).mean(2) * asked_BS).sum() / asked_BS.sum()


def _spread(asked_BS: Tensor, images: Tensor) -> Tensor:
    return asked_BS.view(*asked_BS.shape, *[1] * (images.ndim - 2))


@dataclass(frozen=True)
class SegmentationLabel:
    """One segmentation task: which structures are segmented on which contrasts."""

    sources: tuple[str, ...]
    structures: tuple[str, ...]

    @staticmethod
    def parse(label: str) -> "SegmentationLabel":
        """Read a label such as "T1w+FLAIR->lesion". Raises `ValueError`."""
        sources, structures = (_words(side) for side in label.split("->"))
        return SegmentationLabel(sources, structures)

    @property
    def label(self) -> str:
        return f"{'+'.join(self.sources)}->{'+'.join(self.structures)}"


def _words(side: str) -> tuple[str, ...]:
    return tuple(word.strip() for word in side.split("+"))


@dataclass(frozen=True)
class Channels:
    """The network's inputs and outputs: all contrasts and structures that any site uses."""

    contrasts: tuple[str, ...]
    structures: tuple[str, ...]

    @staticmethod
    def of(delineations: Sequence[SegmentationLabel], contrasts: Sequence[str]) -> "Channels":
        """Collect what labels use: contrasts in the given order, structures by first appearance."""
        used = {contrast for label in delineations for contrast in label.sources}
        structures = dict.fromkeys(name for label in delineations for name in label.structures)
        return Channels(tuple(name for name in contrasts if name in used), tuple(structures))

    def batch(self, session: Session, planes: slice, delineation: SegmentationLabel) -> Batch:
        """Return slices: source (N, C, H, W) in [0, 1] and target (N, S, H, W), 0 or 1.

        A contrast that the delineation does not use is 0; asked (N, S) is 1 for its structures.
        """
        num_slices, _, height, width = session.images[planes].shape
        source = np.zeros((num_slices, len(self.contrasts), height, width), np.float32)
        target = np.zeros((num_slices, len(self.structures), height, width), np.float32)
        for name in delineation.sources:
            images = session.images[planes, session.contrasts.index(name)]
            source[:, self.contrasts.index(name)] = images
        for name in delineation.structures:
            target[:, self.structures.index(name)] = session.masks[name][planes] > 0
        asked = torch.tensor([float(name in delineation.structures) for name in self.structures])
        return {
            "source": _tensor(source),
            "target": _tensor(target),
            "asked": asked.repeat(num_slices, 1),
        }


def _tensor(array: NDArray[np.float32]) -> Tensor:
    return torch.from_numpy(array)  # pyright: ignore[reportUnknownMemberType]


def check_label(site: str, label: str, elements: Elements) -> None:
    """Refuse a label that names no contrasts of the study, or no structures. Raises `BadStudy`."""
    where = f"site '{site}', task '{label}'"
    example = 'write it as "SOURCE+SOURCE->STRUCTURE", for example "T1w+FLAIR->lesion"'
    require(label.count("->") == 1, f"{where}: {example}")
    delineation = SegmentationLabel.parse(label)
    check_contrasts(where, delineation.sources, elements)
    for structure in delineation.structures:
        require(
            bool(structure) and structure not in elements.contrasts,
            f"{where}: '{structure}' names no structure; {example}",
        )
    words = (*delineation.sources, *delineation.structures)
    require(len(set(words)) == len(words), f"{where}: a name stands there twice")


def as_volume(batch: Batch) -> Batch:
    """Stack the slices of a batch into one volume: (1, C, D, H, W)."""
    return {
        "source": batch["source"].movedim(0, 1)[None],
        "target": batch["target"].movedim(0, 1)[None],
        "asked": batch["asked"][:1],
    }


def as_slices(images: Tensor) -> Tensor:
    """Return the slices, (D, C, H, W), of one volume, (1, C, D, H, W); slices are unchanged."""
    return images[0].movedim(1, 0) if images.ndim == 5 else images


@dataclass(frozen=True)
class Parts:
    """Training examples, flipped left to right with probability `flip`.

    Without `patch` each is a slice. With it, (depth, height, width) in voxels, each is a patch at a
    place that is drawn at each use, and there are as many as cover the volume in depth. One of the
    volume's delineations is drawn each time.
    """

    volumes: tuple[Visit[SegmentationLabel], ...]
    channels: Channels
    flip: float
    patch: tuple[int, int, int] | None = None

    def __len__(self) -> int:
        return len(self._parts)

    @cached_property
    def _parts(self) -> tuple[Slice[SegmentationLabel], ...]:
        return list_slices(self.volumes, step=self.patch[0] if self.patch else 1)

    def batch(self, indices: Sequence[int], generator: Generator | None) -> Batch:
        """Collate slices (B, C, H, W) or patches (B, C, D, H, W), as `Channels` describes them."""
        draw = generator or Generator().manual_seed(0)
        samples = [self._sample(self._parts[index], draw) for index in indices]
        return {name: torch.cat([sample[name] for sample in samples]) for name in samples[0]}

    def _sample(self, part: Slice[SegmentationLabel], draw: Generator) -> Batch:
        labels = part.visit.labels
        delineation = labels[draw_index(len(labels), draw)]
        sample = self._cut(part, delineation, draw)
        if float(torch.rand((), generator=draw)) >= self.flip:
            return sample
        return {n: t if n == "asked" else t.flip(-1) for n, t in sample.items()}

    def _cut(
        self, part: Slice[SegmentationLabel], delineation: SegmentationLabel, draw: Generator
    ) -> Batch:
        session = part.visit.session
        if self.patch is None:
            return self.channels.batch(session, slice(part.index, part.index + 1), delineation)
        depth, height, width = self.patch
        first, top, left = (
            draw_index(max(1, available - wanted + 1), draw)
            for available, wanted in zip(_shape(session), self.patch, strict=True)
        )
        cut = as_volume(self.channels.batch(session, slice(first, first + depth), delineation))
        for name in ("source", "target"):
            window = cut[name][..., top : top + height, left : left + width]
            missing = depth - window.shape[2]
            cut[name] = functional.pad(window, (0, 0, 0, 0, 0, missing))
        return cut

    def case(self, index: int) -> Case:
        return self._parts[index].case()


def _shape(session: Session) -> tuple[int, int, int]:
    slices, _, height, width = session.images.shape
    return slices, height, width


@dataclass(frozen=True)
class Volumes:
    """The cases to score; each is a whole session with one delineation."""

    volumes: tuple[Visit[SegmentationLabel], ...]
    channels: Channels
    dims: int

    def __len__(self) -> int:
        return len(self.volumes)

    def batch(self, indices: Sequence[int], generator: Generator | None) -> Batch:
        """Return all slices of one session, (N, C, H, W), or its volume, (1, C, D, H, W).

        Where they are known, "heights" are the slices' places in mm.
        """
        assert generator is None, "what is scored is never drawn"
        [index] = indices
        volume = self.volumes[index]
        slices = self.channels.batch(volume.session, slice(None), volume.labels[0])
        made = as_volume(slices) if self.dims == 3 else slices
        heights = volume.session.heights
        return {**made, "heights": torch.tensor(heights)} if heights else made

    def case(self, index: int) -> Case:
        return self.volumes[index].case()


def greys(structures_SHW: Tensor) -> Tensor:
    """Return structures in one image, (H, W): a pixel has the grey of its last structure."""
    count = len(structures_SHW)
    greys = torch.arange(1, count + 1, device=structures_SHW.device).view(-1, 1, 1) / count
    return ((structures_SHW >= _THRESHOLD) * greys).amax(0)


@dataclass(frozen=True)
class Segmentation(Outside):
    """Options of the segmentation task; `model` = "small" is a network for CPUs.

    `channels` are those of each level of the U-Net, the finest first; with `dims` = 3 it trains on
    patches of `patch` voxels (slices, rows, columns) and slides over whole volumes. `network` and
    `loss` take the place of the U-Net and of its loss.
    """

    metric: ClassVar[str] = "dice"
    sizes: ClassVar[Mapping[str, Mapping[str, object]]] = {"small": {"channels": [8, 16, 32, 64]}}
    replaced: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "network": ("model", "channels", "norm", "dropout")
    }

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
        return self.norm == "batch"

    def check(self, elements: Elements, sites: Mapping[str, Sequence[str]]) -> None:
        """Refuse options that no U-Net can be built or trained with. Raises `BadStudy`."""
        require(
            len(self.channels) >= 2 and min(self.channels) >= 2,
            f"task.channels is {list(self.channels)}; it needs two levels or more, each 2 or more",
        )
        check_shares(self, ("dropout", "flip"))
        self.check_outside()
        halvings = 1 if self.network else 2 ** (len(self.channels) - 1)
        if not self.network:
            check_size(elements, least=2 * halvings, multiple=halvings)
        if self.dims == 3:
            self._check_patch(elements, halvings)
        require(
            self.dims == 3 or self.patch == Segmentation.patch,
            "task.patch would do nothing: task.dims is 2, and slices are taken whole",
        )
        for site, labels in sites.items():
            for label in labels:
                check_label(site, label, elements)

    def _check_patch(self, elements: Elements, halvings: int) -> None:
        fits = all(
            voxels <= whole for voxels, whole in zip(self.patch[1:], elements.size, strict=True)
        )
        whole = all(voxels > 0 and voxels % halvings == 0 for voxels in self.patch)
        require(
            fits and whole and max(self.patch) > halvings,
            f"task.patch is {list(self.patch)}; its three numbers must be multiples of {halvings}, "
            f"one above it, rows and columns within elements.size ({list(elements.size)})",
        )

    def bind(
        self, elements: Elements, sites: Labels, new_sites: Labels = NO_SITES
    ) -> "SegmentationTask":
        """Make a consortium's task; `sites` maps each site, in roster order, to its task labels."""
        delineations = {
            site: tuple(SegmentationLabel.parse(label) for label in labels)
            for site, labels in {**sites, **new_sites}.items()
        }
        trained = sum((delineations[site] for site in sites), ())
        channels = Channels.of(trained, elements.contrasts)
        size = elements.size if self.dims == 2 else self.patch
        return SegmentationTask(self, channels, delineations, elements.spacing, tuple(size))


@dataclass(frozen=True)
class SegmentationTask(StagedTask):
    """A task that segments structures on one or more contrasts, each with its own sigmoid."""

    options: Segmentation
    channels: Channels
    delineations: Mapping[str, tuple[SegmentationLabel, ...]]
    spacing: tuple[float, float]
    size: tuple[int, ...] = ()  # of what it trains on: a slice or a patch

    @property
    def cases_at_once(self) -> int:
        """Score one session at a time: a case is its whole volume."""
        return 1

    @property
    def shape(self) -> UNetShape:
        o = self.options
        return UNetShape(
            inputs=len(self.channels.contrasts),
            outputs=len(self.channels.structures),
            channels=o.channels,
            dims=o.dims,
            norm=o.norm,
            dropout=o.dropout,
        )

    @property
    def known(self) -> Known:
        channels = self.channels
        dims, inputs, outputs = self.options.dims, channels.contrasts, channels.structures
        return Known(dims, len(inputs), len(outputs), self.size)

    @property
    def outside(self) -> Outside:
        return self.options

    def build(self, seed: int) -> UNet | Imported:
        if self.options.network:
            return build_outside(self.options, self.known, seed=seed_for(seed, "network"))
        return build_unet(self.shape, seed=seed_for(seed, "unet"))

    def uses(self, site: str) -> Filter:
        """Return the filter of all of the network that is not fixed."""
        uses, changes = super().uses(site), self.options.changes
        return lambda name: uses(name) and changes(name)

    def blank(self, size: tuple[int, int]) -> Batch:
        """Return a batch of one case without content: a slice, or a patch of the full depth."""
        axes = size if self.options.dims == 2 else (self.options.patch[0], *size)
        structures = len(self.channels.structures)
        return {
            "source": torch.zeros(1, len(self.channels.contrasts), *axes),
            "target": torch.zeros(1, structures, *axes),
            "asked": torch.ones(1, structures),
        }

    def loss(self, output: Tensor, batch: Batch) -> Tensor:
        """Return Dice loss plus cross-entropy of logits, or the study's loss.

        Isensee et al. 2021.
        """
        if self._from_outside:
            return self.distance(output, batch)
        target, asked = batch["target"], batch["asked"]
        return dice_loss(output, target, asked) + cross_entropy(output, target, asked)

    @cached_property
    def _from_outside(self) -> nn.Module | None:
        return build_loss(self.options)

    def distance(self, output: Tensor, batch: Batch) -> Tensor:
        """Return the mean of the study's loss over cases, each on its own structures.

        A structure that a case is not asked for teaches nothing.
        """
        assert self._from_outside is not None, "only a study with a loss from outside asks for it"
        rows = zip(output, batch["target"], batch["asked"] > 0, strict=True)
        losses = [
            loss_from_outside(
                self.options, self._from_outside, made[None, asked], target[None, asked]
            )
            for made, target, asked in rows
        ]
        return torch.stack(losses).mean()

    def predict(self, model: nn.Module, batch: Batch) -> Tensor:
        """Return probabilities in the target's shape, computed some slices or patches at a time."""
        model.eval()
        source = batch["source"]
        if self.options.dims == 3:
            return self.to_prediction(
                slid(model, source, self.options.patch, at_once=_SLICES_AT_ONCE)
            )
        starts = range(0, len(source), _SLICES_AT_ONCE)
        return self.to_prediction(
            torch.cat([model(source[first : first + _SLICES_AT_ONCE]) for first in starts])
        )

    def to_prediction(self, output: Tensor) -> Tensor:
        return output.float().sigmoid()

    def score(self, prediction: Tensor, batch: Batch) -> dict[str, Tensor]:
        """Score the case: Dice and HD95 (mm), averaged over its structures, and Dice of each.

        A pixel belongs to a structure from probability 0.5 on. HD95 is within slices and, where
        their heights are known, also in space. "empty" tells a case whose mask shows nothing from
        one that is drawn well: it is the share of its structures without a pixel, if there are any.
        """
        asked = batch["asked"][0] > 0
        predicted = as_slices(prediction)[:, asked] >= _THRESHOLD
        target = as_slices(batch["target"])[:, asked] > 0
        dice_S, hd95_S = dice(predicted, target).cpu(), hd95(predicted, target, self.spacing)
        names = [n for n, used in zip(self.channels.structures, asked, strict=True) if used]
        by_structure = {f"dice_{n}": d[None] for n, d in zip(names, dice_S, strict=True)}
        means = {"dice": dice_S.mean()[None], "hd95": hd95_S.mean()[None]}
        if "heights" in batch:
            heights = [float(height) for height in batch["heights"]]
            in_space_S = hd95_3d(predicted, target, self.spacing, heights)
            means["hd95_3d"] = in_space_S.mean()[None]
        empty_S = ~target.any(0).flatten(1).any(1)
        if bool(empty_S.any()):
            means[EMPTY] = empty_S.double().mean().cpu()[None]
        return means | (by_structure if len(by_structure) > 1 else {})

    def summary(self, scores: Sequence[CaseScore]) -> dict[str, float]:
        """Average each score over patients, tasks and sites, among the cases that have it.

        Of empty masks it is the share among all cases.
        """
        if any(EMPTY in score.values for score in scores):
            scores = [
                replace(s, values={**s.values, EMPTY: s.values.get(EMPTY, 0.0)}) for s in scores
            ]
        return mean_where_scored(scores)

    def picture(self, prediction: Tensor, batch: Batch) -> Picture:
        """Return the middle slice, (H, W) in [0, 1]: first contrast, and structures as greys."""
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
        """Return the parameter groups; "output" makes one logit for each structure."""
        if isinstance(model, Imported):
            return groups_from_outside(self.options, model)
        prefixes = {"encoder": ENCODER, "bottleneck": BOTTLENECK, "decoder": DECODER}
        groups = {name: name_starts(f"{PART}.{prefix}") for name, prefix in prefixes.items()}
        output = name_starts(f"{PART}.{OUTPUT}.")
        return groups | {
            "output": output,
            "norm": name_in(batch_norm_names(model)),
            "head": output,
            "upper": name_starts(f"{PART}.{DECODER}", f"{PART}.{OUTPUT}."),
            "all": name_starts(f"{PART}."),
        }

    def training_examples(self, cohorts: Sequence[Cohort]) -> Parts:
        """Return each training slice once, or patches; the task is drawn at each use."""
        o = self.options
        patch = o.patch if o.dims == 3 else None
        return Parts(self._volumes(cohorts, "train", each=False), self.channels, o.flip, patch)

    def evaluation_examples(self, cohorts: Sequence[Cohort], split: SplitName) -> Volumes:
        """Return each session of a split, once for each of its site's tasks that it can serve."""
        return Volumes(self._volumes(cohorts, split, each=True), self.channels, self.options.dims)

    def _volumes(
        self, cohorts: Sequence[Cohort], split: SplitName, *, each: bool
    ) -> tuple[Visit[SegmentationLabel], ...]:
        visits = [list_visits(c, split, self.delineations[c.site], each=each) for c in cohorts]
        return sum(visits, ())
