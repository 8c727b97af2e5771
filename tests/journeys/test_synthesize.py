"""A contrast that nobody measured: on the volume's own grid, and what the model predicts."""

from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from grandrounds.data.nifti import read_voxels
from grandrounds.data.prepare import prepare_volumes
from grandrounds.data.resample import Pixels, in_plane, smooth
from grandrounds.data.session_files import SessionFiles
from grandrounds.inference.trained_model import load_trained_model
from grandrounds.runs.loop import run_study as run
from grandrounds.runs.site_data import open_sites
from grandrounds.tasks.synthesis.examples import ContrastPair
from grandrounds.tasks.synthesis.task import SynthesisTask
from tests.conftest import SaveVolume
from tests.helpers.command import Done, inside
from tests.helpers.federation import tiny
from tests.helpers.task_studies import tiny_of

Ask = Callable[..., Done]
AXES = np.diag([7.0, 7.0, 5.0, 1.0])  # the tiny study's pixels, in slices of 5 mm
FROM_LEFT = np.array([[0, 0, -7, 90], [7, 0, 0, -80], [0, -5, 0, 60], [0, 0, 0, 1.0]])


@pytest.fixture(scope="module")
def trained_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "tiny"
    run(tiny("rounds=2", sites=2), folder)
    return folder


@pytest.fixture(scope="module")
def simulated() -> NDArray[np.float32]:
    """A simulated T1w volume, (left to right, back to front, upwards), 32 x 32 x 4 voxels."""
    session = open_sites(tiny(sites=2), ())["alder"].cohorts[0].splits["test"][0]
    slices = session.images[:, session.contrasts.index("T1w")]
    return np.ascontiguousarray(slices.transpose(2, 1, 0)[::-1, ::-1]) * 900


@pytest.fixture
def ask(
    trained_run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Ask:
    """Ask for a contrast, by default for T2w of T1w at alder."""

    def asked(
        source: Path, out: Path, *more: str | Path, site: str = "alder", to: str = "T2w"
    ) -> Done:
        words = ("--site", site, "--from", "T1w", "--to", to, source, out, *more)
        return inside(monkeypatch, capsys, "synthesize", trained_run, *words)

    return asked


def expected(folder: Path, source: Path, **masks: Path) -> NDArray[np.float32]:
    """Predict every prepared slice by itself, with the code of alder."""
    trained = load_trained_model(folder, "alder")
    task, pair = trained.task, ContrastPair("T1w", "T2w")
    assert isinstance(task, SynthesisTask)
    files = SessionFiles("", "", {"T1w": source}, masks)
    images = torch.from_numpy(prepare_volumes(files, trained.study.elements).images)
    code = task.coding.code("alder", pair)[None]
    with torch.no_grad():
        found = [
            task.predict(trained.model, {"source": image[None] * 2 - 1, "code": code})
            for image in images
        ]
    return torch.cat(found)[:, 0].numpy()


def same_place(first: Path, second: Path) -> None:
    one, other = nib.load(first), nib.load(second)
    assert isinstance(one, nib.Nifti1Image)
    assert isinstance(other, nib.Nifti1Image)
    assert one.shape == other.shape
    assert np.array_equal(one.affine, other.affine)  # pyright: ignore[reportArgumentType]
    assert one.header.get_zooms() == other.header.get_zooms()
    for key in ("sform_code", "qform_code", "xyzt_units"):
        assert one.header[key] == other.header[key]


def test_on_the_study_s_own_pixels_the_volume_is_the_prediction(
    ask: Ask,
    trained_run: Path,
    simulated: NDArray[np.float32],
    save_volume: SaveVolume,
    tmp_path: Path,
):
    source = save_volume(tmp_path / "head.nii.gz", simulated, AXES)
    done = ask(source, tmp_path / "made.nii.gz")
    assert (done.code, done.out) == (0, f"synthetic T2w: {tmp_path / 'made.nii.gz'}\n"), done.err
    same_place(source, tmp_path / "made.nii.gz")
    made = read_voxels(tmp_path / "made.nii.gz")
    assert np.abs(made - expected(trained_run, source)).max() < 1e-5
    assert 0 <= made.min() < made.max() <= 1


def test_a_volume_with_other_axes_becomes_the_same_image_on_these(
    ask: Ask, simulated: NDArray[np.float32], save_volume: SaveVolume, tmp_path: Path
):
    turned = np.ascontiguousarray(simulated.transpose(1, 2, 0)[:, ::-1, ::-1])
    sources = (
        save_volume(tmp_path / "straight.nii", simulated, AXES),
        save_volume(tmp_path / "turned.nii", turned, FROM_LEFT),
    )
    for source in sources:
        out = source.with_name(f"made-{source.name}")
        assert ask(source, out).code == 0
        same_place(source, out)
    straight, other = (read_voxels(s.with_name(f"made-{s.name}")) for s in sources)
    assert np.abs(straight - other).max() < 1e-5


@pytest.mark.slow
def test_a_real_volume_keeps_its_geometry_and_shows_the_prediction(
    ask: Ask, trained_run: Path, real_data: Path, tmp_path: Path
):
    folder = real_data / "mri" / "site-lju15t"
    source, brain = folder / "sub-01_ses-1_T1w.nii.gz", folder / "sub-01_ses-1_brainmask.nii.gz"
    out = tmp_path / "made.nii.gz"
    done = ask(source, out, "--brain", brain)
    assert done.code == 0, done.err
    same_place(source, out)
    predicted = expected(trained_run, source, brain=brain)
    made, (_, height, width) = read_voxels(out), read_voxels(source).shape
    spacing = nib.load(source).header.get_zooms()  # pyright: ignore[reportAttributeAccessIssue]
    rows, columns = Pixels(7.0, height, spacing[1]), Pixels(7.0, width, spacing[0])
    back = in_plane(predicted, rows, columns, by=smooth).clip(0, 1)
    assert np.abs(made - back).max() < 1e-4


def test_of_a_slice_with_nothing_in_it_nothing_is_made(
    ask: Ask, simulated: NDArray[np.float32], save_volume: SaveVolume, tmp_path: Path
):
    simulated = simulated.copy()
    simulated[:, :, 1] = 0
    out = tmp_path / "made.nii.gz"
    assert ask(save_volume(tmp_path / "head.nii.gz", simulated, AXES), out).code == 0
    assert [bool(plane.any()) for plane in read_voxels(out)] == [True, False, True, True]


def test_each_site_s_model_makes_another_image(
    ask: Ask, simulated: NDArray[np.float32], save_volume: SaveVolume, tmp_path: Path
):
    source = save_volume(tmp_path / "head.nii.gz", simulated, AXES)
    for site in ("alder", "birch"):
        assert ask(source, tmp_path / f"{site}.nii.gz", site=site).code == 0
    first, second = (read_voxels(tmp_path / f"{site}.nii.gz") for site in ("alder", "birch"))
    assert np.abs(first - second).max() > 1e-3


@pytest.mark.parametrize(
    ("out", "options", "sentence"),
    [
        ("made.nii.gz", {"to": "PDw"}, "site 'alder' never trained the task 'T1w->PDw'; it "),
        ("made.nii.gz", {"to": "T1c"}, "site 'alder' never trained the task 'T1w->T1c'; it "),
        ("made.nii.gz", {"site": "cedar"}, "study 'tiny': no site 'cedar' trained; those that "),
        ("made.png", {}, "made.png: is no name of a NIfTI volume; it must end with .nii.gz or "),
        ("head.nii.gz", {}, "head.nii.gz: is there already; choose another name"),
        ("no/made.nii", {}, "no/made.nii: there is no folder no that can be written to; make it"),
    ],
)
def test_what_cannot_be_made_is_refused_and_nothing_is_left(
    out: str,
    options: dict[str, str],
    sentence: str,
    ask: Ask,
    simulated: NDArray[np.float32],
    save_volume: SaveVolume,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.chdir(tmp_path)
    save_volume(tmp_path / "head.nii.gz", simulated, AXES)
    done = ask(Path("head.nii.gz"), Path(out), **options)
    assert (done.code, done.out) == (2, "")
    assert done.err.startswith(f"grandrounds: {sentence}"), done.err
    assert done.err.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["head.nii.gz"]


def test_a_damaged_volume_is_refused_and_nothing_is_left(
    ask: Ask, simulated: NDArray[np.float32], save_volume: SaveVolume, tmp_path: Path
):
    source = save_volume(tmp_path / "head.nii.gz", simulated, AXES)
    source.write_bytes(source.read_bytes()[:2000])
    done = ask(source, tmp_path / "made.nii.gz")
    assert done.code == 2
    assert "head.nii.gz: cannot be read" in done.err
    assert [path.name for path in tmp_path.iterdir()] == ["head.nii.gz"]


def test_a_model_of_another_task_makes_no_contrast(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
):
    run(tiny_of("classification", "rounds=1", sites=2), tmp_path / "run")
    words = ("--site", "alder", "--from", "FLAIR", "--to", "lesion", "head.nii", "made.nii")
    done = inside(monkeypatch, capsys, "synthesize", tmp_path / "run", *words)
    assert done.code == 2
    assert "is of classification; only a model of synthesis makes a contrast" in done.err


@pytest.mark.slow
def test_a_model_is_exported_by_the_command_line(
    trained_run: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
):
    def export(*words: str) -> Done:
        return inside(monkeypatch, capsys, "export", trained_run, "--site", "alder", *words)

    out = str(tmp_path / "model.pt2")
    done = export("--task", "T1w->T2w", "--out", out)
    assert done.code == 0, done.err
    assert done.out.startswith(f"torch-export: {out} (T1w->T2w; at most ")
    assert torch.export.load(out).module()(torch.rand(5, 1, 32, 32)).shape == (5, 1, 32, 32)
    refused = export("--out", str(tmp_path / "other.pt2"))
    assert (refused.code, refused.out) == (2, "")
    assert "its model must be told which; choose one with --task" in refused.err
    unknown = export("--format", "h5", "--out", str(tmp_path / "model.h5"))
    assert unknown.code == 2
    assert "--format h5: is unknown; known: torch-export, torchscript, onnx, bundle" in unknown.err
    assert [path.name for path in tmp_path.iterdir()] == ["model.pt2"]
