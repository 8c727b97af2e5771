"""A trained model synthesises a contrast that was not measured from a NIfTI volume of another."""

import gzip
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from grandrounds.core.device import choose_device
from grandrounds.core.errors import BadInput, BadStudy
from grandrounds.core.files import create_whole
from grandrounds.data.cohort import Cohort, Session
from grandrounds.data.elements import Elements
from grandrounds.data.nifti import read_grid, to_nifti
from grandrounds.data.prepare import prepare_volumes
from grandrounds.data.resample import Pixels, in_plane, smooth
from grandrounds.data.session_files import SessionFiles
from grandrounds.inference.trained_model import TrainedModel
from grandrounds.site.evaluation import evaluation_batches
from grandrounds.tasks.synthesis.examples import ContrastPair
from grandrounds.tasks.synthesis.task import SynthesisTask

COMPRESSED, _PLAIN = ".nii.gz", ".nii"


def synthesize_volume(
    trained: TrainedModel, pair: ContrastPair, source: Path, out: Path, *, brain: Path | None = None
) -> None:
    """Write the target contrast of a volume, on its own grid.

    The volume is prepared as the site's data are; with a `brain` mask, it is scaled by what is
    inside. Values are in [0, 1]: 1 is 1.2 times the contrast's 99th percentile in the brain. Raises
    `BadInput`.
    """
    task, pair = _checked(trained, pair)
    if not out.name.endswith((COMPRESSED, _PLAIN)):
        raise BadInput(f"{out}: is no name of a NIfTI volume; it must end with .nii.gz or .nii")
    with create_whole(out) as path:
        masks = {"brain": brain} if brain else {}
        files = SessionFiles("input", "", {pair.source: source}, masks)
        images = prepare_volumes(files, trained.study.elements)[:, 0]
        made = predict_volume(trained, task, pair, images)
        made[~images.any(axis=(1, 2))] = 0  # a network predicts something for empty slices, too
        content = to_nifti(_on_grid_of(source, made, trained.study.elements), source)
        compressed = out.name.endswith(COMPRESSED)
        path.write_bytes(gzip.compress(content, mtime=0) if compressed else content)


def _checked(trained: TrainedModel, pair: ContrastPair) -> tuple[SynthesisTask, ContrastPair]:
    if not isinstance(trained.task, SynthesisTask):
        raise BadStudy(
            f"study '{trained.study.name}' is of {trained.study.task.kind}; only a model of "
            "synthesis makes a contrast"
        )
    return trained.task, ContrastPair.parse(trained.asked(pair.label))


@torch.no_grad()
def predict_volume(
    trained: TrainedModel, task: SynthesisTask, pair: ContrastPair, images: NDArray[np.float32]
) -> NDArray[np.float32]:
    """Predict prepared slices, (slice, height, width) in [0, 1], as those of the site."""
    unknown = images  # nothing reads the target
    session = Session("input", "", (pair.source, pair.target), np.stack([images, unknown], axis=1))
    cohort = Cohort(trained.site, {"train": (), "validation": (), "test": (session,)})
    alone = replace(task, pairs={**task.pairs, trained.site: (pair,)})
    examples = alone.evaluation_examples([cohort], "test")
    device = choose_device()
    model = trained.model.to(device)
    found = [
        task.predict(model, {n: t.to(device) for n, t in examples.batch(chunk, None).items()})
        for chunk in evaluation_batches(task, examples)
    ]
    return torch.cat(found)[:, 0].cpu().numpy()


def _on_grid_of(source: Path, made: NDArray[np.float32], elements: Elements) -> NDArray[np.float32]:
    """Resample prepared slices to the rows and columns of a volume; what they left out is 0."""
    grid = read_grid(source)
    rows, columns = zip(elements.spacing, grid.shape[1:], grid.spacing[1:], strict=True)
    return in_plane(made, Pixels(*rows), Pixels(*columns), by=smooth).clip(0, 1)
