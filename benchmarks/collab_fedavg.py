"""FedAvg by NVFlare's Collab API: a function of each client is called as if it were here.

Its options come as JSON in the environment variable COLLAB, as those of recipe.py.
"""

import json
import os
import time
from pathlib import Path
from typing import Any

import torch
from nvflare.collab import collab
from recipe_client import Net, local_round, optimizer_of

OPTIONS = json.loads(os.environ.get("COLLAB", "{}"))
kept: dict[str, Any] = {}


@collab.publish
def train(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Train one epoch from these weights at a client."""
    if not kept:
        torch.set_num_threads(1)
        model = Net(OPTIONS["widths"])
        rows = torch.load(Path(OPTIONS["rows"]) / f"{collab.site_name}.pt")
        kept.update(model=model, optimizer=optimizer_of(model), rows=rows)
    kept["model"].load_state_dict(weights)
    local_round(kept["model"], kept["optimizer"], kept["rows"], OPTIONS["batch"])
    return kept["model"].state_dict()


@collab.main
def average() -> None:
    """Average what the clients trained, round by round; every site has as many rows."""
    weights = Net(OPTIONS["widths"]).state_dict()
    for _ in range(OPTIONS["rounds"]):
        with (Path(OPTIONS["times"]) / OPTIONS["sites"][0]).open("a") as file:
            file.write(f"{time.time()}\n")
        found = [result for _, result in collab.clients(timeout=120.0).train(weights)]
        assert len(found) == len(OPTIONS["sites"])
        share = 1 / len(found)
        weights = {name: sum(share * each[name] for each in found) for name in weights}
