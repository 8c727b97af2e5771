"""The tiny study with networks from outside, and a few such networks and losses."""

from collections.abc import Mapping
from copy import deepcopy
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from grandrounds.study.file import Table, parse_study, read_table
from grandrounds.study.study import Study
from tests.helpers.federation import TINY
from tests.helpers.task_studies import SITE_TASKS

HERE = __name__
SEGRESNET: Table = {
    "network": "monai.networks.nets:SegResNet",
    "network_options": {"init_filters": 8, "blocks_down": [1, 1], "blocks_up": [1]},
    "groups": {
        "encoder": ["convInit", "down_layers"],
        "decoder": ["up_layers", "up_samples"],
        "head": ["conv_final"],
    },
}


def outside_table(kind: str = "segmentation", **task: Any) -> Table:
    """The table of the tiny study with two sites and this task; images do not flip."""
    table = deepcopy(read_table(TINY))
    table["task"] = {"kind": kind, "flip": 0.0, **deepcopy(task)}
    table["method"] = {"kind": "fedavg"}
    table["site"] = table["site"][:2]
    for site in table["site"]:
        site["tasks"] = SITE_TASKS[kind] or ["T1w->T2w"]
    return table


def outside_study(
    *overrides: str, kind: str = "segmentation", task: Mapping[str, Any] = SEGRESNET
) -> Study:
    """The tiny study with two sites and a network from outside."""
    return parse_study(outside_table(kind, **task), overrides)


def over(study: Study, rounds: int) -> Study:
    return replace(study, rounds=rounds)


class Plain(nn.Module):
    """Two convolutions and a batch norm, with names of its own for what a task knows."""

    def __init__(self, in_channels: int, out_channels: int, width: int = 4) -> None:
        super().__init__()
        self.enter = nn.Conv2d(in_channels, width, 3, padding=1)
        self.norm = nn.BatchNorm2d(width)
        self.leave = nn.Conv2d(width, out_channels, 1)

    def forward(self, image: Tensor) -> Tensor:
        return self.leave(torch.relu(self.norm(self.enter(image))))


class Open(Plain):
    """A network that takes any options."""

    def __init__(self, in_channels: int, out_channels: int, **options: object) -> None:
        super().__init__(in_channels, out_channels)
        self.options = options


class TwiceNamed(Plain):
    """A network whose head has a second name, as layers of MONAI's DynUNet do."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__(in_channels, out_channels)
        self.again = nn.ModuleList([self.leave])


class Shy(Plain):
    """A network that makes something else in training than in evaluation."""

    def forward(self, image: Tensor) -> Any:
        made = super().forward(image)
        return torch.stack([made, made], 1) if self.training else made


class Reader(Plain):
    """A network that must see numbers."""

    def forward(self, image: Tensor) -> Tensor:
        return super().forward(image) * (1 if image.sum().item() else 2)


class Slashed(nn.Module):
    """A network with a slash in the name of a layer."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.layers = nn.ModuleDict({"a/b": nn.Conv2d(in_channels, out_channels, 1)})

    def forward(self, image: Tensor) -> Tensor:
        return self.layers["a/b"](image)


class Nothing(nn.Module):
    """A network without weights."""

    def forward(self, image: Tensor) -> Tensor:
        return image.repeat(1, 3, 1, 1)


class Weighed(nn.Module):
    """A loss with weights of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))

    def forward(self, output: Tensor, target: Tensor) -> Tensor:
        return self.weight * (output - target).square().mean()


class Counting(nn.Module):
    """A loss whose number has no gradient."""

    def forward(self, output: Tensor, target: Tensor) -> Tensor:
        return ((output > 0) != (target > 0)).float().mean()
