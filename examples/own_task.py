"""A task of one's own as the how-to shows it: is there a nodule in a volume?"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from monai.networks.nets.densenet import DenseNet
from torch import Generator, Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits

import grandrounds as gr

Batch = dict[str, Tensor]


@dataclass(frozen=True)
class Nodules(gr.SupervisedTask):
    """Tells volumes with a nodule from those without; trains on patches, scores whole volumes."""

    metric: ClassVar[str] = "log_score"  # higher is better
    patch: int = 16
    features: int = 8

    def network(self) -> nn.Module:
        return DenseNet(3, 1, 1, init_features=self.features, growth_rate=4, block_config=(2, 2))

    def blank(self, size: tuple[int, int]) -> Batch:
        return {"image": torch.zeros(1, 1, *[self.patch] * 3), "label": torch.zeros(1, 1)}

    def loss(self, output: Tensor, batch: Batch) -> Tensor:
        return binary_cross_entropy_with_logits(output, batch["label"])

    def score(self, prediction: Tensor, batch: Batch) -> dict[str, Tensor]:
        found, label = prediction.flatten().sigmoid().double(), batch["label"].flatten()
        true = torch.where(label > 0, found, 1 - found).clamp_min(1e-12)
        return {"log_score": true.log(), "accuracy": ((found >= 0.5) == (label > 0)).double()}

    def augment(self, batch: Batch, generator: Generator) -> Batch:
        image = batch["image"]
        for axis in (2, 3, 4):
            room = image.shape[axis] - self.patch
            first = int(torch.randint(room + 1, (), generator=generator))
            image = image.narrow(axis, first, self.patch)
        return {**batch, "image": image}

    def dataset(self, folder: Path) -> "NoduleVolumes":
        return NoduleVolumes(sorted(folder.glob("*.npz")))


class NoduleVolumes(torch.utils.data.Dataset[Mapping[str, Tensor]]):
    """Volumes on the disk, one .npz for each patient, whose ID is the file's name."""

    def __init__(self, paths: Sequence[Path]) -> None:
        self.paths = paths
        self.patients = [path.stem for path in paths]

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> Mapping[str, Tensor]:
        with np.load(self.paths[index]) as file:
            image = torch.from_numpy(file["image"]).float()[None]
            return {"image": image, "label": torch.tensor([float(file["label"])])}
