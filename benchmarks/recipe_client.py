"""The same local work as a site's, in the script that NVFlare's FedAvg recipe runs at a client.

It appends to `--times` when it got the model of each round.
"""

import argparse
import time
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, cast

import nvflare.client as flare
import torch
from torch import nn
from torch.nn import functional


class Net(nn.Module):
    """The perceptron of the tabular task: linear layers with ReLU between them."""

    def __init__(self, widths: Sequence[int]) -> None:
        super().__init__()
        pairs = pairwise(widths)
        layers = [layer for above, below in pairs for layer in (nn.Linear(above, below), nn.ReLU())]
        self.network = nn.Sequential(*layers[:-1])

    def forward(self, source: torch.Tensor) -> torch.Tensor:
        return self.network(source)


def optimizer_of(model: Net) -> torch.optim.Optimizer:
    return torch.optim.Adam(model.parameters(), lr=2e-4, betas=(0.5, 0.999), fused=True)


def local_round(
    model: Net, optimizer: torch.optim.Optimizer, rows: Mapping[str, torch.Tensor], batch: int
) -> int:
    """Train for one epoch; give the number of steps."""
    model.train()
    chunks = torch.randperm(len(rows["source"])).split(batch)
    for chosen in chunks:
        optimizer.zero_grad()
        found = model(rows["source"][chosen])
        functional.binary_cross_entropy_with_logits(found, rows["target"][chosen]).backward()
        optimizer.step()
    return len(chunks)


def main() -> None:
    options = argparse.ArgumentParser()
    options.add_argument("--rows", type=Path, required=True)
    options.add_argument("--times", type=Path, required=True)
    options.add_argument("--widths", type=int, nargs="+", required=True)
    options.add_argument("--batch", type=int, required=True)
    given = options.parse_args()
    torch.set_num_threads(1)
    flare.init()
    site = flare.get_site_name()
    rows = torch.load(given.rows / f"{site}.pt")
    model = Net(given.widths)
    optimizer = optimizer_of(model)
    while flare.is_running():
        came = cast(Any, flare.receive())
        if came is None:
            break
        with (given.times / site).open("a") as file:
            file.write(f"{time.time()}\n")
        model.load_state_dict(came.params)
        steps = local_round(model, optimizer, rows, given.batch)
        meta = {"NUM_STEPS_CURRENT_ROUND": steps}
        flare.send(flare.FLModel(params=model.state_dict(), metrics={}, meta=meta))


if __name__ == "__main__":
    main()
