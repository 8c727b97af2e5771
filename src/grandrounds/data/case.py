"""What a site's images look like once they are prepared: sessions of patients, slice by slice."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

Split: TypeAlias = Literal["train", "validation", "test"]
SPLITS: tuple[Split, ...] = ("train", "validation", "test")


@dataclass(frozen=True)
class Session:
    """One scanning session of one patient, prepared and on one grid.

    `images` is float32 (slice, contrast, height, width) in [0, 1], often a read-only memory map;
    `contrasts` names its second axis; `masks` maps "brain", "lesion" or a tissue to uint8 (slice,
    height, width); `values` are the patient's variables, NaN where one is missing.
    """

    patient: str
    session: str
    contrasts: tuple[str, ...]
    images: NDArray[np.float32]
    masks: Mapping[str, NDArray[np.uint8]] = field(default_factory=dict[str, NDArray[np.uint8]])
    values: Mapping[str, float] = field(default_factory=dict[str, float])

    @property
    def num_slices(self) -> int:
        """Count the slices."""
        return self.images.shape[0]

    @property
    def label(self) -> str:
        """Name the session within its site: patient, and session where there is one."""
        return f"{self.patient}_{self.session}" if self.session else self.patient

    def image(self, slice_index: int, contrast: str) -> NDArray[np.float32]:
        """Give one slice of one contrast, (height, width)."""
        return self.images[slice_index, self.contrasts.index(contrast)]


@dataclass(frozen=True)
class Cohort:
    """All prepared sessions of one site, split by patient: no patient is in two splits."""

    site: str
    splits: Mapping[Split, tuple[Session, ...]]

    def __iter__(self) -> Iterator[Session]:
        """Walk through the sessions of all splits."""
        for split in SPLITS:
            yield from self.splits[split]

    def patients(self, split: Split) -> tuple[str, ...]:
        """Name the patients of a split, each once, in order of appearance."""
        return tuple(dict.fromkeys(session.patient for session in self.splits[split]))
