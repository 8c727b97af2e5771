"""How long it takes to synthesise a volume of 240 x 240 x 155 voxels, beside the bare network.

The command reads a compressed volume, prepares it, checks it, predicts it and writes another one;
the bare network predicts as many slices of the study's size in the same batches. The two are timed
in turns, and the ratio is the median over turns of slices per second, command to network. The
network is as the demo's study builds it, on slices of 128 x 128 pixels; its weights do not matter.
"""

import argparse
import json
import tempfile
import time
from pathlib import Path
from statistics import median

import nibabel as nib
import numpy as np
import torch
from numpy.typing import NDArray

from grandrounds.inference.slices import SlicePredictor
from grandrounds.inference.synthesize import synthesize_volume
from grandrounds.inference.trained_model import TrainedModel
from grandrounds.study.file import read_study
from grandrounds.tasks.synthesis.examples import ContrastPair

DEMO = Path(__file__).parents[1] / "studies" / "demo.toml"
SHAPE = (240, 240, 155)  # of 1 mm
SIZE = ("elements.size=[128,128]", "elements.spacing=[1.9,1.9]")
PAIR = ContrastPair("T1w", "T2w")


def head() -> NDArray[np.int16]:
    """A ball of tissue in noise: every slice shows something, as real ones do."""
    axes = np.meshgrid(*(np.linspace(-1, 1, n) for n in SHAPE), indexing="ij", sparse=True)
    ball = sum(axis**2 for axis in axes) < 0.8
    noise = np.random.default_rng(1).normal(500, 60, SHAPE)
    return np.where(ball, noise, np.abs(noise - 500) / 6).astype(np.int16)


def untrained(model: str) -> TrainedModel:
    study = read_study(DEMO, (*SIZE, f"task.model={model}"))
    task = study.make_task()
    return TrainedModel(study, task, "alder", 0, task.build(study.seed).eval(), holder="alder")


def timed_network(predictor: SlicePredictor) -> float:
    """The network on the batches of one volume, without images around it."""
    height, width = predictor.trained.study.elements.size
    size, count = predictor.task.cases_at_once, SHAPE[2]
    blank = predictor.task.blank((height, width))
    batches = []
    for start in range(0, count, size):
        rows = min(size, count - start)
        batch = {name: tensor.expand(rows, *tensor.shape[1:]) for name, tensor in blank.items()}
        batches.append(batch | {"source": torch.rand(rows, 1, height, width) * 2 - 1})
    began = time.perf_counter()
    with torch.no_grad():
        for batch in batches:
            predictor.task.predict(predictor.model, batch)
    return time.perf_counter() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true", help="print one object of ratios")
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--model", default="small", choices=("small", "full"))
    wishes = parser.parse_args()
    trained = untrained(wishes.model)
    predictor = SlicePredictor.of(trained, PAIR)
    commands, networks = list[float](), list[float]()
    with tempfile.TemporaryDirectory() as scratch:
        source = Path(scratch) / "head.nii.gz"
        nib.save(nib.Nifti1Image(head(), np.diag([1.0, 1.0, 1.0, 1.0])), source)
        for turn in range(wishes.turns):
            networks.append(timed_network(predictor))
            began = time.perf_counter()
            synthesize_volume(trained, PAIR, source, Path(scratch) / f"made-{turn}.nii.gz")
            commands.append(time.perf_counter() - began)
    ratio = median(n / c for n, c in zip(networks, commands, strict=True))
    if wishes.json:
        print(json.dumps({"ratio": round(ratio, 3), "seconds": round(median(commands), 2)}))
        return
    print(f"{SHAPE[0]} x {SHAPE[1]} x {SHAPE[2]} voxels, the {wishes.model} network, 128 x 128")
    for name, seconds in (("synthesize", commands), ("bare network", networks)):
        each = median(seconds)
        print(f"{name:>12}: {each:6.2f} s, {SHAPE[2] / each:6.1f} slices a second")
    print(f"{'ratio':>12}: {ratio:.3f} (median of {wishes.turns} turns)")


if __name__ == "__main__":
    main()
