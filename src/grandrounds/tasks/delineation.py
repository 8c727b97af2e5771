"""What is outlined on what: task labels of segmentation, and the channels that they become."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from grandrounds.data.case import Session
from grandrounds.data.elements import Elements
from grandrounds.tasks.checks import check_contrasts, require
from grandrounds.tasks.task import Batch


@dataclass(frozen=True)
class Delineation:
    """One segmentation task: which structures are outlined on which contrasts."""

    sources: tuple[str, ...]
    structures: tuple[str, ...]

    @staticmethod
    def parse(label: str) -> "Delineation":
        """Read a label such as "T1w+FLAIR->lesion". Raises `ValueError`."""
        sources, structures = (_words(side) for side in label.split("->"))
        return Delineation(sources, structures)

    @property
    def label(self) -> str:
        """Write the label."""
        return f"{'+'.join(self.sources)}->{'+'.join(self.structures)}"


def _words(side: str) -> tuple[str, ...]:
    return tuple(word.strip() for word in side.split("+"))


@dataclass(frozen=True)
class Channels:
    """The network's inputs and outputs: all contrasts and structures that any site uses."""

    contrasts: tuple[str, ...]
    structures: tuple[str, ...]

    @staticmethod
    def of(delineations: Sequence[Delineation], contrasts: Sequence[str]) -> "Channels":
        """Collect what delineations use: contrasts in the order given, structures as they come."""
        used = {contrast for each in delineations for contrast in each.sources}
        structures = dict.fromkeys(name for each in delineations for name in each.structures)
        return Channels(tuple(name for name in contrasts if name in used), tuple(structures))

    def batch(self, session: Session, planes: slice, delineation: Delineation) -> Batch:
        """Give slices of a session: source (N, C, H, W) in [0, 1] and target (N, S, H, W), 0 or 1.

        A contrast that the delineation does not use is 0; asked (N, S) is 1 for its structures.
        """
        num_slices, _, height, width = session.images[planes].shape
        source = np.zeros((num_slices, len(self.contrasts), height, width), np.float32)
        target = np.zeros((num_slices, len(self.structures), height, width), np.float32)
        for name in delineation.sources:
            own = session.images[planes, session.contrasts.index(name)]
            source[:, self.contrasts.index(name)] = own
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
    delineation = Delineation.parse(label)
    check_contrasts(where, delineation.sources, elements)
    for structure in delineation.structures:
        require(
            bool(structure) and structure not in elements.contrasts,
            f"{where}: '{structure}' names no structure; {example}",
        )
    words = (*delineation.sources, *delineation.structures)
    require(len(set(words)) == len(words), f"{where}: a name stands there twice")
