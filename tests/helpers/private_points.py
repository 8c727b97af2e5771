"""A tiny task without batch norm, on points in files, for runs with differential privacy."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from grandrounds.privacy.budget import PrivacyLimit
from grandrounds.study.file import parse_study
from grandrounds.study.site_file import SiteFile
from grandrounds.study.study import Study
from tests.helpers.own_tasks import Line, Points, table_of

RECORD = {"kind": "record", "clip": 0.5, "noise": 8.0}


@dataclass(frozen=True)
class PlainLine(Line):
    """Fits a line through points, each patient by itself."""

    def network(self) -> nn.Module:
        return nn.Sequential(nn.Linear(2, 4), nn.Tanh(), nn.Linear(4, 1))

    def dataset(self, folder: Path) -> "FiledPoints":
        return FiledPoints(folder)


class FiledPoints(Points):
    """The points of a file."""

    def __init__(self, folder: Path) -> None:
        with np.load(folder / "points.npz") as found:
            super().__init__(list(found["patients"]))
            self.points = torch.from_numpy(found["points"])

    def __getitem__(self, index: int) -> Mapping[str, Tensor]:
        return super().__getitem__(index)


def write_points(
    folder: Path, site: str = "oak", *, patients: int = 10, each: int = 1, **limit: Any
) -> SiteFile:
    """Write a site's points, so many of each patient, and return its site file with a limit."""
    names = [f"{site}-{n // each:02d}" for n in range(patients * each)]
    folder.mkdir(parents=True, exist_ok=True)
    points = Points(names, seed=len(site)).points.numpy()
    np.savez(folder / "points.npz", patients=names, points=points)
    return SiteFile(site, folder, privacy=PrivacyLimit(**limit) if limit else None)


def private_lines(*overrides: str, sites: tuple[str, ...] = ("oak",), **changes: Any) -> Study:
    """A study of lines with differential privacy of each patient, in which SGD trains."""
    training = {"batch_size": 4, "threads": 1, "learning_rate": 0.1, "optimizer": "sgd"}
    table = table_of(PlainLine, sites, training=training, **{"privacy": RECORD, **changes})
    return parse_study(table, overrides)
