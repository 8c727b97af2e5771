"""Does the error of a synthetic image grow with its uncertainty map?

On test patients of a run's simulated sites, inside the head: the mean absolute error by decile of
uncertainty, Spearman's rank correlation over voxels (the mean over patients), and by how much the
error falls if the most uncertain tenth of voxels is left out. Beside each kind of map stands the
prediction's own brightness, a map that anybody has for nothing.
"""

import argparse
import json
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata

from grandrounds.core.errors import BadInput
from grandrounds.data.cohort import Session
from grandrounds.data.prepare import head_of
from grandrounds.inference.slices import SlicePredictor
from grandrounds.inference.trained_model import load_trained_model
from grandrounds.inference.uncertainty import SPREAD_KINDS, SpreadKind, spread_for
from grandrounds.runs.folder import TrainedRun
from grandrounds.runs.site_data import open_sites
from grandrounds.tasks.synthesis.examples import ContrastPair

BRIGHTNESS = "brightness"
Voxels = NDArray[np.float32]


def predictors(folder: Path) -> Iterator[tuple[SlicePredictor, tuple[Session, ...]]]:
    study = TrainedRun(folder).study
    for name, data in open_sites(study, ()).items():
        trained = load_trained_model(folder, name)
        for label in trained.labels:
            pair = ContrastPair.parse(label)
            yield SlicePredictor.of(trained, pair), data.cohorts[0].splits["test"]


def images_of(session: Session, contrast: str) -> Voxels:
    return np.ascontiguousarray(session.images[:, session.contrasts.index(contrast)])


def calibration(error: Voxels, unsure: Voxels) -> dict[str, float | list[float]]:
    """The mean error in each tenth of voxels by uncertainty, its rank correlation, and the gain."""
    order = np.argsort(unsure, kind="stable")
    deciles = [float(part.mean()) for part in np.array_split(error[order], 10)]
    rank = float(np.corrcoef(rankdata(error), rankdata(unsure))[0, 1])
    gain = 1 - float(np.mean(deciles[:9]) / error.mean())
    return {"deciles": deciles, "rank": rank, "gain": gain}


def measure(folder: Path, kinds: list[SpreadKind], patients: int) -> dict[str, dict[str, object]]:
    found: dict[str, list[dict[str, float | list[float]]]] = defaultdict(list)
    for predictor, sessions in predictors(folder):
        spreads = {kind: spread_for(predictor, kind) for kind in kinds}
        for session in sessions[:patients]:
            source = images_of(session, predictor.pair.source)
            target, made = images_of(session, predictor.pair.target), predictor(source)
            inside = head_of(source)
            error = np.abs(made - target)[inside]
            found[BRIGHTNESS].append(calibration(error, made[inside]))
            for kind, spread in spreads.items():
                found[kind].append(calibration(error, spread.of(source)[inside]))
    return {kind: summary(rows) for kind, rows in found.items()}


def summary(rows: list[dict[str, float | list[float]]]) -> dict[str, object]:
    deciles = np.mean([row["deciles"] for row in rows], axis=0)
    return {
        "rank": round(float(np.mean([row["rank"] for row in rows])), 3),
        "last_to_first": round(float(deciles[-1] / deciles[0]), 2),
        "gain": round(float(np.mean([row["gain"] for row in rows])), 3),
        "deciles": [round(float(value), 4) for value in deciles],
        "volumes": len(rows),
    }


def possible(folder: Path) -> list[SpreadKind]:
    """The kinds that this run has what is needed for."""
    predictor = next(predictors(folder))[0]
    kinds: list[SpreadKind] = []
    for kind in SPREAD_KINDS:
        try:
            spread_for(predictor, kind)
        except BadInput as reason:
            print(f"{kind}: {reason}")
        else:
            kinds.append(kind)
    return kinds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path, help="the folder of a finished run of simulated sites")
    parser.add_argument("--patients", type=int, default=8, help="test patients of each task")
    parser.add_argument("--json", action="store_true", help="print one object of numbers")
    wishes = parser.parse_args()
    found = measure(wishes.run, possible(wishes.run), wishes.patients)
    if wishes.json:
        print(json.dumps(found))
        return
    print(f"{'map':>10}  {'rank':>6}  {'gain':>6}  {'10th/1st':>8}  error by decile (least first)")
    for kind, row in found.items():
        deciles = " ".join(f"{value:.3f}" for value in np.asarray(row["deciles"]))
        numbers = f"{row['rank']:>6}  {row['gain']:>6}  {row['last_to_first']:>8}"
        print(f"{kind:>10}  {numbers}  {deciles}")


if __name__ == "__main__":
    main()
