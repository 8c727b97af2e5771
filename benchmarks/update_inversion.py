"""What an attacker makes of the update of one image in one step, plain and with clip and noise.

A small U-Net of ours with an L1 loss and simulated patients (`tests/helpers/inverted_updates.py`).
The table is written into docs/reference/privacy.md, and the picture beside it: the patient's image,
what the attack made of the plain update, what it made of the protected one, and the mean of other
patients, from which it starts.

    python benchmarks/update_inversion.py [--json]
"""

import argparse
import json
import sys
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import PIL.Image
import torch

from grandrounds.audit.inversion import Reconstruction

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from tests.helpers.inverted_updates import attack  # noqa: E402 - it lies beside

PAGE = ROOT / "docs/reference/privacy.md"
PICTURE = PAGE.parent / "update-inversion.png"
BEGIN, END = "<!-- update_inversion: begin -->", "<!-- update_inversion: end -->"
NOISES = (0.0, 0.01, 0.1)  # times the clipped norm, added to each value
ENLARGED = 4


def attack_at(noise: float) -> Reconstruction:
    torch.set_num_threads(1)
    return attack(noise=noise)


def table_of(found: dict[float, Reconstruction]) -> str:
    rows = [
        "| noise, times the clip | individual detail | from noise alone | from another's update |"
    ]
    rows.append("|---|---|---|---|")
    for noise, each in found.items():
        told = f"{each.detail:.2f} | {each.controls['noise']:.2f} | {each.controls['another']:.2f}"
        rows.append(f"| {noise or 'none, no clip'} | {told} |")
    return "\n".join(rows)


def draw(found: dict[float, Reconstruction]) -> None:
    plain, guarded = found[NOISES[0]], found[NOISES[-1]]
    images = [plain.true, plain.found, guarded.found, plain.mean]
    row = torch.cat([((each[0] + 1) / 2).clamp(0, 1) for each in images], 1).numpy()
    pixels = np.rint(row * 255).astype(np.uint8)
    picture = PIL.Image.fromarray(pixels)
    picture.resize((picture.width * ENLARGED, picture.height * ENLARGED), 0).save(PICTURE)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    with ProcessPoolExecutor(len(NOISES), get_context("spawn")) as pool:
        found = dict(zip(NOISES, pool.map(attack_at, NOISES), strict=True))
    if options.json:
        print(
            json.dumps({f"detail_at_noise_{noise}": each.detail for noise, each in found.items()})
        )
        return
    draw(found)
    shown = (
        f"![The patient, the attack on the plain update, on the protected one, and the mean]"
        f"({PICTURE.name})"
    )
    before, rest = PAGE.read_text("utf-8").split(BEGIN)
    _, after = rest.split(END)
    text = f"{BEGIN}\n\n{table_of(found)}\n\n{shown}\n\n{END}"
    PAGE.write_text(f"{before}{text}{after}", "utf-8")
    print(table_of(found))


if __name__ == "__main__":
    main()
