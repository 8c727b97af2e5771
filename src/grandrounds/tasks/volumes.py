"""Sessions as examples of segmentation: slices or patches to train on, whole volumes to score."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Generator, Tensor
from torch.nn import functional

from grandrounds.data.case import Cohort, Session, Split
from grandrounds.data.inspect import serves
from grandrounds.tasks.delineation import Channels, Delineation
from grandrounds.tasks.slices import pseudonyms_of, visits_of
from grandrounds.tasks.task import Batch, Case

THRESHOLD = 0.5  # of a structure's probability, for its pixels to count as drawn


@dataclass(frozen=True)
class Volume:
    """One session, and the delineations that it can serve at its site.

    `patient` is a pseudonym and `visit` a number: what the site calls either says too much.
    """

    site: str
    patient: str
    visit: int
    session: Session
    delineations: tuple[Delineation, ...]


def as_volume(batch: Batch) -> Batch:
    """Stack the slices of a batch to one volume: (1, C, D, H, W)."""
    return {
        "source": batch["source"].movedim(0, 1)[None],
        "target": batch["target"].movedim(0, 1)[None],
        "asked": batch["asked"][:1],
    }


def as_slices(images: Tensor) -> Tensor:
    """Give the slices, (D, C, H, W), of one volume, (1, C, D, H, W); slices stay as they are."""
    return images[0].movedim(1, 0) if images.ndim == 5 else images


@dataclass(frozen=True)
class Part:
    """What one training example is cut from: a volume, and the slice where it begins."""

    volume: Volume
    first: int


@dataclass(frozen=True)
class Parts:
    """Training examples, flipped left to right with probability `flip`.

    Without `patch` each is a slice. With it, (depth, height, width) in voxels, each is a patch at a
    place drawn anew, and there are as many as cover the volume in depth. One of the volume's
    delineations is drawn each time.
    """

    volumes: tuple[Volume, ...]
    channels: Channels
    flip: float
    patch: tuple[int, int, int] | None = None

    def __len__(self) -> int:
        """Count the slices or patches."""
        return len(self._parts)

    @cached_property
    def _parts(self) -> list[Part]:
        step = self.patch[0] if self.patch else 1
        return [Part(v, k) for v in self.volumes for k in range(0, v.session.num_slices, step)]

    def batch(self, indices: Sequence[int], generator: Generator | None) -> Batch:
        """Collate slices (B, C, H, W) or patches (B, C, D, H, W), as `Channels` describes them."""
        draw = generator or Generator().manual_seed(0)
        samples = [self._sample(self._parts[index], draw) for index in indices]
        return {name: torch.cat([sample[name] for sample in samples]) for name in samples[0]}

    def _sample(self, part: Part, draw: Generator) -> Batch:
        choices = part.volume.delineations
        delineation = choices[_drawn(len(choices), draw)]
        sample = self._cut(part, delineation, draw)
        if float(torch.rand((), generator=draw)) >= self.flip:
            return sample
        return {n: t if n == "asked" else t.flip(-1) for n, t in sample.items()}

    def _cut(self, part: Part, delineation: Delineation, draw: Generator) -> Batch:
        session = part.volume.session
        if self.patch is None:
            return self.channels.batch(session, slice(part.first, part.first + 1), delineation)
        depth, height, width = self.patch
        first, top, left = (
            _drawn(max(1, whole - own + 1), draw)
            for whole, own in zip(_shape(session), self.patch, strict=True)
        )
        found = as_volume(self.channels.batch(session, slice(first, first + depth), delineation))
        for name in ("source", "target"):
            window = found[name][..., top : top + height, left : left + width]
            missing = depth - window.shape[2]
            found[name] = functional.pad(window, (0, 0, 0, 0, 0, missing))
        return found

    def case(self, index: int) -> Case:
        """Name an example."""
        part = self._parts[index]
        volume = part.volume
        label = f"{volume.visit}/{part.first:03d}"
        return Case(volume.site, volume.patient, label, volume.delineations[0].label)


def _shape(session: Session) -> tuple[int, int, int]:
    slices, _, height, width = session.images.shape
    return slices, height, width


def _drawn(count: int, generator: Generator) -> int:
    return int(torch.randint(count, (), generator=generator)) if count > 1 else 0


@dataclass(frozen=True)
class Volumes:
    """Cases to score: each is a whole session with one delineation."""

    volumes: tuple[Volume, ...]
    channels: Channels
    dims: int

    def __len__(self) -> int:
        """Count the volumes."""
        return len(self.volumes)

    def batch(self, indices: Sequence[int], generator: Generator | None) -> Batch:
        """Give all slices of one session, (N, C, H, W), or its volume, (1, C, D, H, W)."""
        assert generator is None, "what is scored is never drawn"
        [index] = indices
        volume = self.volumes[index]
        found = self.channels.batch(volume.session, slice(None), volume.delineations[0])
        return as_volume(found) if self.dims == 3 else found

    def case(self, index: int) -> Case:
        """Name a case."""
        volume = self.volumes[index]
        label = volume.delineations[0].label
        return Case(volume.site, volume.patient, str(volume.visit), label)


def volumes_of(
    cohort: Cohort, split: Split, delineations: Sequence[Delineation], *, each: bool
) -> tuple[Volume, ...]:
    """List a split's sessions that can serve at least one delineation.

    `each` lists a session once for every delineation.
    """
    pseudonyms, visits = pseudonyms_of(cohort), visits_of(cohort)
    found: list[Volume] = []
    for session in cohort.splits[split]:
        served = tuple(d for d in delineations if serves(session, d.label))
        choices = [(d,) for d in served] if each else [served] if served else []
        who = (cohort.site, pseudonyms[session.patient], visits[session.label])
        found += [Volume(*who, session, choice) for choice in choices]
    return tuple(found)


def greys(structures_SHW: Tensor) -> Tensor:
    """Paint structures into one image, (H, W): the last one that has a pixel gives its grey."""
    count = len(structures_SHW)
    greys = torch.arange(1, count + 1, device=structures_SHW.device).view(-1, 1, 1) / count
    return ((structures_SHW >= THRESHOLD) * greys).amax(0)
