"""Without noise and clipping, differential privacy of patients is what it would be without."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from grandrounds.core.weights import Weights, digest
from grandrounds.runs.loop import run_study
from grandrounds.study.site_file import SiteFile
from tests.helpers.private_points import private_lines, write_points

NO_NOISE = {"kind": "record", "clip": 1e12, "noise": 0.0}
NONE = {"kind": "none"}
FULL_BATCH = ("training.batch_size=99", "training.precision=fp64", "training.schedule=constant")


def trained(
    folder: Path, privacy: dict[str, Any], files: Sequence[SiteFile], *overrides: str
) -> Weights:
    """The model after a run at the sites with these files."""
    sites = tuple(file.name for file in files)
    study = private_lines(*FULL_BATCH, *overrides, sites=sites, privacy=privacy)
    return run_study(study, folder, files=files).weights


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_all_patients_in_each_lot_without_noise_is_full_batch_training(
    tmp_path: Path, optimizer: str
):
    files = [write_points(tmp_path / name, name, each=2) for name in ("oak", "yew")]
    chosen = (f'training.optimizer="{optimizer}"', "training.epochs=3")
    plain = trained(tmp_path / "plain", NONE, files, *chosen)
    private = trained(tmp_path / "private", NO_NOISE, files, *chosen)
    start = trained(tmp_path / "start", NONE, files, *chosen, "training.learning_rate=1e-300")
    for name, tensor in plain.items():
        assert tensor.isfinite().all()
        assert not torch.equal(tensor, start[name])
        torch.testing.assert_close(private[name], tensor, rtol=0, atol=1e-10)


def test_one_patient_without_noise_has_the_bits_of_plain_training(tmp_path: Path):
    # Nothing is added up over patients, so nothing can be added up in another order.
    files = [write_points(tmp_path / "oak", patients=3)]  # of whom one trains
    elements = {"split": {"train": 0.34, "validation": 0.33, "test": 0.33}}
    found: dict[str, str] = {}
    for kind, privacy in (("plain", NONE), ("private", NO_NOISE)):
        study = private_lines(*FULL_BATCH, privacy=privacy, elements=elements)
        found[kind] = digest(run_study(study, tmp_path / kind, files=files).weights)
    assert found["plain"] == found["private"]
