"""A model that is told how an image was scanned, used outside of its run."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from grandrounds.core.run_folder import RunFolder
from grandrounds.data.acquisition import sidecar_of
from grandrounds.data.nifti import read_voxels
from grandrounds.inference.export import export_program
from grandrounds.inference.predictor import predictor_for
from grandrounds.inference.trained_model import load_trained_model
from grandrounds.inference.trained_module import TrainedModule
from grandrounds.runs.loop import run_study as run
from grandrounds.runs.site_data import open_sites
from tests.conftest import SaveVolume
from tests.helpers.command import Done, inside
from tests.helpers.federation import tiny

pytestmark = pytest.mark.slow
LABEL = "T1w->T2w"
AXES = np.diag([7.0, 7.0, 5.0, 1.0])  # the tiny study's pixels, in slices of 5 mm


@pytest.fixture(scope="module")
def trained_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "coded"
    run(tiny("task.codes=protocol", "rounds=1", sites=2), folder)
    return folder


def test_a_file_has_the_code_of_how_the_site_usually_scans(trained_run: Path, tmp_path: Path):
    trained = load_trained_model(trained_run, "birch")
    cohorts = open_sites(trained.study, ())["birch"].cohorts
    examples = trained.task.evaluation_examples(cohorts, "test")
    batch = examples.batch([0, 1], None)
    assert {examples.case(place).task for place in (0, 1)} == {LABEL}
    predictor, images = predictor_for(trained, LABEL), (batch["source"] + 1) / 2
    assert torch.equal(predictor.module.batch(images)["code"], batch["code"])
    with torch.no_grad():
        expected = trained.task.predict(trained.model, batch)
    found = TrainedModule.load(trained_run, "birch").predict(images, LABEL)
    assert torch.allclose(found, expected, atol=1e-5)
    assert export_program(predictor, "torchscript", tmp_path / "birch.ts") < 1e-4


@pytest.fixture
def head_volume(save_volume: SaveVolume, tmp_path: Path) -> Path:
    study = tiny(sites=2)
    session = open_sites(study, ())["alder"].cohorts[0].splits["test"][0]
    slices = session.images[:, session.contrasts.index("T1w")]
    voxels = np.ascontiguousarray(slices.transpose(2, 1, 0)[::-1, ::-1]) * 900
    return save_volume(tmp_path / "head.nii.gz", voxels, AXES)


def test_a_volume_s_sidecar_says_how_it_was_scanned(
    trained_run: Path,
    head_volume: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    def made(name: str) -> Done:
        words = ("--site", "alder", "--from", "T1w", "--to", "T2w", head_volume, tmp_path / name)
        return inside(monkeypatch, capsys, "synthesize", trained_run, *words)

    assert made("unsaid.nii").code == 0
    as_usual = {"SequenceFamily": "spin-echo", "RepetitionTime": 0.5, "EchoTime": 0.012}
    as_usual |= {"MagneticFieldStrength": 1.5}
    sidecar_of(head_volume).write_text(json.dumps(as_usual))
    assert made("usual.nii").code == 0
    sidecar_of(head_volume).write_text(json.dumps({"SequenceFamily": "mprage", "EchoTime": 0.003}))
    assert made("other.nii").code == 0
    unsaid, usual, other = (
        read_voxels(tmp_path / f"{name}.nii") for name in ("unsaid", "usual", "other")
    )
    assert np.array_equal(unsaid, usual)
    assert np.abs(usual - other).max() > 1e-4
    sidecar_of(head_volume).write_text("[]")
    refused = made("never.nii")
    assert refused.code == 2
    assert "head.json: is no sidecar" in refused.err


def test_a_model_without_its_protocols_is_refused(
    trained_run: Path,
    head_volume: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    path = RunFolder(trained_run).site("alder").protocols
    text = path.read_text()
    words = ("--site", "alder", "--from", "T1w", "--to", "T2w", head_volume, tmp_path / "x.nii")
    try:
        for left in (None, "{}", text.replace('"pixel": 7.0', '"pixel": "7"')):
            path.unlink(missing_ok=True) if left is None else path.write_text(left)
            done = inside(monkeypatch, capsys, "synthesize", trained_run, *words)
            assert (done.code, str(path) in done.err) == (2, True), done.err
    finally:
        path.write_text(text)
