"""NVFlare's own FedAvg recipe, or FedAvg by its Collab API, in its simulator; called by engine.py.

python benchmarks/recipe.py fedavg|collab OPTIONS_AS_JSON
"""

import json
import os
import sys
from pathlib import Path
from typing import Any

from nvflare.app_opt.pt.recipes.fedavg import FedAvgRecipe
from nvflare.recipe import SimEnv

HERE = Path(__file__).parent


def fedavg(given: dict[str, Any]) -> FedAvgRecipe:
    widths = given["widths"]
    words = " ".join(map(str, widths))
    return FedAvgRecipe(
        name="recipe",
        model={"class_path": "recipe_client.Net", "args": {"widths": widths}},
        min_clients=len(given["sites"]),
        num_rounds=given["rounds"],
        train_script=str(HERE / "recipe_client.py"),
        train_args=(
            f"--rows {given['rows']} --times {given['times']} "
            f"--widths {words} --batch {given['batch']}"
        ),
    )


def by_calls(given: dict[str, Any]) -> Any:
    os.environ["COLLAB"] = json.dumps(given)
    os.environ["PYTHONPATH"] = str(HERE)
    import collab_fedavg
    from nvflare.collab import CollabRecipe

    return CollabRecipe(
        "collab", server=collab_fedavg, client=collab_fedavg, min_clients=len(given["sites"])
    )


def main() -> None:
    kind, given = sys.argv[1], json.loads(sys.argv[2])
    recipe = fedavg(given) if kind == "fedavg" else by_calls(given)
    sites = given["sites"]
    workspace = given["workspace"]
    recipe.execute(SimEnv(clients=sites, num_threads=len(sites), workspace_root=workspace))


if __name__ == "__main__":
    main()
