"""NVFlare's own FedAvg recipe in its simulator; called by engine.py with its options as JSON."""

import json
import sys
from pathlib import Path

from nvflare.app_opt.pt.recipes.fedavg import FedAvgRecipe
from nvflare.recipe import SimEnv

HERE = Path(__file__).parent


def main() -> None:
    given = json.loads(sys.argv[1])
    widths = given["widths"]
    words = " ".join(map(str, widths))
    recipe = FedAvgRecipe(
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
    sites = given["sites"]
    workspace = given["workspace"]
    recipe.execute(SimEnv(clients=sites, num_threads=len(sites), workspace_root=workspace))


if __name__ == "__main__":
    main()
