"""A study of a task of one's own, two sites with real files for it, and tinier tasks."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import mse_loss

import grandrounds as gr
from examples.own_task import Nodules
from grandrounds.study.file import Table, parse_study
from grandrounds.study.site_file import SiteDataset, SiteFile
from grandrounds.study.study import Study

PATIENTS = {"oak": 8, "yew": 6}
Batch = dict[str, Tensor]


def write_volumes(folder: Path) -> tuple[SiteFile, ...]:
    """Write each site's volumes, of several sizes, and return their site files."""
    for number, (site, patients) in enumerate(PATIENTS.items()):
        draw = np.random.default_rng(number)
        (folder / site).mkdir(parents=True, exist_ok=True)
        for patient in range(patients):
            image = draw.normal(size=draw.integers(16, 20, 3)).astype(np.float32)
            image[4:12, 4:12, 4:12] += 2 * (patient % 2)
            path = folder / site / f"MRN-{number}{patient}.npz"
            np.savez(path, image=image, label=patient % 2)
    return tuple(SiteFile(site, folder / site) for site in PATIENTS)


def table_of(kind: type, sites: Sequence[str] = tuple(PATIENTS), **changes: Any) -> Table:
    """A study file of a task, with a site for each name."""
    return {
        "name": "own",
        "rounds": 2,
        "task": {"kind": f"{kind.__module__}:{kind.__qualname__}"},
        "method": {"kind": "fedavg"},
        "training": {"batch_size": 2, "threads": 1, "learning_rate": 1e-3},
        "site": [{"name": name, "tasks": ["nodule"]} for name in sites],
        **changes,
    }


def nodules(*overrides: str, **changes: Any) -> Study:
    """The study of nodules."""
    return parse_study(table_of(Nodules, **changes), ("task.features=4", *overrides))


@dataclass(frozen=True)
class Line(gr.SupervisedTask):
    """Fits a line through points: a task that computes in no time."""

    metric: ClassVar[str] = "closeness"

    def network(self) -> nn.Module:
        return nn.Sequential(nn.Linear(2, 4), nn.BatchNorm1d(4), nn.Linear(4, 1))

    def blank(self, size: tuple[int, int]) -> Batch:
        return {"image": torch.zeros(1, 2), "value": torch.zeros(1, 1)}

    def loss(self, output: Tensor, batch: Batch) -> Tensor:
        return mse_loss(output, batch["value"])

    def score(self, prediction: Tensor, batch: Batch) -> dict[str, Tensor]:
        error = (prediction - batch["value"]).abs().flatten()
        return {"error": error, "closeness": -error}


@dataclass
class Points:
    """A dataset in memory: as many points as patients are named."""

    patients: Sequence[str]
    seed: int = 0
    points: Tensor = field(init=False)

    def __post_init__(self) -> None:
        generator = torch.Generator().manual_seed(self.seed)
        self.points = torch.randn(len(self.patients), 2, generator=generator)

    def __len__(self) -> int:
        return len(self.points)

    def __getitem__(self, index: int) -> Mapping[str, Tensor]:
        point = self.points[index]
        return {"image": point, "value": point.sum(0, keepdim=True)}


def points(site: str, count: int = 10, seed: int = 0) -> SiteDataset:
    """A site's points, two of each patient."""
    return SiteDataset(site, Points([f"{site}-MRN-{n // 2}" for n in range(count)], seed))


def lines(kind: type = Line, *overrides: str, **changes: Any) -> Study:
    """A study of lines, or of another tiny task."""
    return parse_study(table_of(kind, **changes), overrides)
