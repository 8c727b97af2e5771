"""From an archive's volume and back: DICOM, uncertainty, refusals, and all that a cohort lacks."""

import csv
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pydicom
import pytest
from numpy.typing import NDArray

import grandrounds as gr
from grandrounds.core.errors import BadSite, BadStudy
from grandrounds.data.nifti import read_voxels
from grandrounds.data.session_files import find_sessions
from grandrounds.data.simulation.simulate import Patients
from grandrounds.inference.synthesize import SynthesisOptions, synthesize_volume
from grandrounds.inference.trained_model import load_trained_model
from grandrounds.inference.uncertainty import SPREAD_MEANING, VIEWS
from grandrounds.runs.loop import run_study as run
from grandrounds.runs.site_data import open_sites
from grandrounds.tasks.synthesis.examples import ContrastPair
from tests.conftest import SaveVolume
from tests.helpers.command import Done, inside
from tests.helpers.federation import tiny
from tests.helpers.mr_series import write_series

Ask = Callable[..., Done]
AXES = np.diag([7.0, 7.0, 16.0, 1.0])  # the tiny study's pixels and slices
STUDY = tiny("rounds=1", "stop.validate_every=1", "training.epochs=1", sites=2)
PATIENTS = Patients(train=6, validation=1, test=2)
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two sites with enough patients for a profile."""
    sites = tuple(replace(spec, patients=PATIENTS) for spec in STUDY.site)
    folder = tmp_path_factory.mktemp("runs") / "tiny"
    run(replace(STUDY, site=sites), folder)
    return folder


@pytest.fixture(scope="module")
def heads(folder: Path) -> dict[str, NDArray[np.float32]]:
    """A test patient of alder, in every contrast: (left to right, back to front, upwards)."""
    sites = tuple(replace(spec, patients=PATIENTS) for spec in STUDY.site)
    session = open_sites(replace(STUDY, site=sites), ())["alder"].cohorts[0].splits["test"][1]
    return {
        contrast: np.ascontiguousarray(
            session.images[:, place].transpose(2, 1, 0)[::-1, ::-1] * np.float32(900)
        ).round()
        for place, contrast in enumerate(session.contrasts)
    }


@pytest.fixture
def series(heads: dict[str, NDArray[np.float32]], tmp_path: Path) -> Path:
    """The T1w head as a DICOM series, whose columns run to the left and rows to the back."""
    turned = heads["T1w"][::-1, ::-1]
    affine = AXES @ np.array([[-1, 0, 0, 31], [0, -1, 0, 31], [0, 0, 1, 0], [0, 0, 0, 1.0]])
    return write_series(tmp_path / "series", turned, affine)


@pytest.fixture
def ask(folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Ask:
    def asked(source: Path, out: Path, *more: str | Path, of: str = "T1w", to: str = "T2w") -> Done:
        words = ("--site", "alder", "--from", of, "--to", to, source, out, *more)
        return inside(monkeypatch, capsys, "synthesize", folder, *words)

    return asked


def sidecar(path: Path) -> dict[str, object]:
    return json.loads(path.read_text())


def test_a_patient_of_the_site_s_scanner_is_as_the_model_knows_them(
    ask: Ask, heads: dict[str, NDArray[np.float32]], save_volume: SaveVolume, tmp_path: Path
):
    source = save_volume(tmp_path / "head.nii.gz", heads["T1w"], AXES)
    done = ask(source, tmp_path / "made.nii.gz")
    assert (done.code, done.err) == (0, "")
    said = sidecar(tmp_path / "made.json")
    assert said["Synthetic"] is True
    assert said["OutsideOfTraining"] == []
    assert "NotChecked" not in said
    assert said["Description"] == "T2w from T1w: synthetic, not for diagnosis"


def test_what_the_model_has_not_seen_is_refused_and_made_anyway_only_with_a_word(
    ask: Ask, heads: dict[str, NDArray[np.float32]], save_volume: SaveVolume, tmp_path: Path
):
    source = save_volume(tmp_path / "head.nii.gz", heads["T2w"], AXES)
    out = tmp_path / "made.nii.gz"
    refused = ask(source, out)
    assert (refused.code, refused.out) == (2, "")
    start = f"grandrounds: {source}: lies outside what the model of site 'alder' has seen: its grey"
    assert refused.err.startswith(start), refused.err
    assert "it looks like the site's T2w" in refused.err
    assert not out.exists()
    done = ask(source, out, "--anyway")
    assert done.code == 0
    assert "note: made all the same, though its grey values are " in done.err
    [reason] = json.loads((tmp_path / "made.json").read_text())["OutsideOfTraining"]
    assert "would be right" in reason


@pytest.mark.parametrize(
    ("affine", "reason"),
    [
        (np.diag([7.0, 7.0, 70.0, 1.0]), "its slices are 70 mm apart, and those that the model "),
        (np.diag([2.0, 2.0, 16.0, 1.0]), "the largest cross-section that it shows has "),
    ],
)
def test_another_geometry_is_refused_in_numbers(
    affine: NDArray[np.float64],
    reason: str,
    ask: Ask,
    heads: dict[str, NDArray[np.float32]],
    save_volume: SaveVolume,
    tmp_path: Path,
):
    done = ask(save_volume(tmp_path / "head.nii.gz", heads["T1w"], affine), tmp_path / "made.nii")
    assert done.code == 2
    assert reason in done.err
    assert "would be right" in done.err
    assert done.err.count("\n") == 1


def test_what_lies_outside_of_the_window_is_0_and_said(
    ask: Ask, heads: dict[str, NDArray[np.float32]], save_volume: SaveVolume, tmp_path: Path
):
    wide = np.tile(heads["T1w"], (2, 1, 1))
    out = tmp_path / "made.nii.gz"
    done = ask(save_volume(tmp_path / "head.nii.gz", wide, AXES), out, "--anyway")
    assert done.code == 0, done.err
    assert "of what it shows lies outside the study's window, and is 0" in done.err
    assert not read_voxels(out)[:, :, :14].any()
    assert json.loads((tmp_path / "made.json").read_text())["ShareOutsideWindow"] > 0.1


def test_a_run_without_a_profile_says_that_it_cannot_check(
    folder: Path,
    heads: dict[str, NDArray[np.float32]],
    save_volume: SaveVolume,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    shutil.copytree(folder, tmp_path / "run")
    (tmp_path / "run" / "sites" / "alder" / "profile.json").unlink()
    source = save_volume(tmp_path / "head.nii.gz", heads["T2w"], AXES)
    words = ("--site", "alder", "--from", "T1w", "--to", "T2w", source, tmp_path / "made.nii")
    done = inside(monkeypatch, capsys, "synthesize", tmp_path / "run", *words)
    assert done.code == 0
    assert done.err.startswith("note: not checked whether the model has seen the like: the run ")


def test_a_dicom_series_gives_what_the_same_voxels_as_nifti_do(
    ask: Ask,
    series: Path,
    heads: dict[str, NDArray[np.float32]],
    save_volume: SaveVolume,
    tmp_path: Path,
):
    volume = save_volume(tmp_path / "head.nii", heads["T1w"], AXES)
    for source, out in ((volume, "of-nifti.nii"), (series, "of-dicom.nii")):
        assert ask(source, tmp_path / out).code == 0
    of_nifti, of_dicom = (read_voxels(tmp_path / f"of-{kind}.nii") for kind in ("nifti", "dicom"))
    assert np.abs(of_nifti - of_dicom).max() < 1e-5


def test_a_dicom_series_comes_back_as_one_of_the_same_study_that_says_what_it_is(
    ask: Ask, series: Path, tmp_path: Path
):
    out = tmp_path / "made"
    assert ask(series, tmp_path / "plain.nii.gz").code == 0
    done = ask(series, out, "--dicom")
    assert (done.code, done.out) == (0, f"synthetic T2w: {out}\n"), done.err
    made = [pydicom.dcmread(path) for path in sorted(out.iterdir())]
    sources = {d.SOPInstanceUID: d for d in map(pydicom.dcmread, series.iterdir())}
    assert len(made) == len(sources) == 4
    for each in made:
        [reference] = each.SourceImageSequence
        source = sources[reference.ReferencedSOPInstanceUID]
        for word in ("PatientName", "PatientID", "StudyInstanceUID", "FrameOfReferenceUID"):
            assert each[word].value == source[word].value
        for word in ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing"):
            assert np.allclose(each[word].value, source[word].value, atol=1e-6)
        assert each.SeriesDescription == "T2w from T1w: synthetic, not for diagnosis"
        assert list(each.ImageType)[:2] == ["DERIVED", "SECONDARY"]
        assert each.SyntheticData == "YES"
        assert "Not for diagnosis" in each.DerivationDescription
        assert (each.PhotometricInterpretation, each.RescaleSlope, each.BitsStored) == (
            "MONOCHROME2",
            1,
            12,
        )
    assert len({each.SOPInstanceUID for each in made}) == 4
    assert {each.SeriesInstanceUID for each in made}.isdisjoint(
        each.SeriesInstanceUID for each in sources.values()
    )
    plain = nib.load(tmp_path / "plain.nii.gz").get_fdata()  # pyright: ignore[reportAttributeAccessIssue]
    stored = np.stack([each.pixel_array.T for each in made], axis=2)
    assert np.abs(stored / 4095 - plain).max() < 2e-4
    again = ask(out, tmp_path / "again.nii")
    assert again.code == 2
    assert "was made by a network (synthetic), and not measured" in again.err


def test_a_series_of_another_contrast_by_its_acquisition_is_refused(
    ask: Ask, heads: dict[str, NDArray[np.float32]], tmp_path: Path
):
    affine = np.diag([-7.0, -7.0, 16.0, 1.0])
    times = {"RepetitionTime": "4500", "EchoTime": "100"}
    t2w = write_series(tmp_path / "t2w", heads["T1w"][::-1, ::-1], affine, **times)
    done = ask(t2w, tmp_path / "made.nii")
    assert done.code == 2
    assert "its DICOM header has the acquisition of a T2w, and it was given as T1w" in done.err


@pytest.mark.parametrize(
    ("files", "sentence"),
    [
        ({}, "holds 0 volumes of DICOM series in 0 files; give the folder of one series with one"),
        ({"notes.txt": b"no image"}, "holds 0 volumes of DICOM series in 1 files; give the folder"),
        ({"IM1": b"\0" * 128 + b"DICM" + b"\xff" * 90}, "IM1: has a header that cannot be parsed"),
    ],
)
def test_a_folder_that_is_no_series_is_refused(
    files: dict[str, bytes], sentence: str, ask: Ask, tmp_path: Path
):
    (tmp_path / "series").mkdir()
    for name, content in files.items():
        (tmp_path / "series" / name).write_bytes(content)
    done = ask(tmp_path / "series", tmp_path / "made", "--dicom")
    assert (done.code, done.out) == (2, "")
    assert sentence in done.err
    assert done.err.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["series"]


def test_two_series_in_a_folder_and_dicom_of_nifti_are_refused(
    ask: Ask,
    series: Path,
    heads: dict[str, NDArray[np.float32]],
    save_volume: SaveVolume,
    tmp_path: Path,
):
    write_series(series / "other", heads["T1w"], np.diag([-7.0, -7.0, 16.0, 1.0]))
    two = ask(series, tmp_path / "made.nii")
    assert two.code == 2
    assert "holds 2 volumes of DICOM series in 8 files; give the folder of one series" in two.err
    source = save_volume(tmp_path / "head.nii.gz", heads["T1w"], AXES)
    nifti = ask(source, tmp_path / "made", "--dicom")
    assert nifti.code == 2
    assert "--dicom needs a DICOM series to start from, whose patient and study" in nifti.err
    assert not (tmp_path / "made").exists()


def test_a_series_is_not_made_of_what_has_a_unit(folder: Path, series: Path, tmp_path: Path):
    trained = load_trained_model(folder, "alder")
    elements = replace(trained.study.elements, intensity={"T2w": (0.0, 80.0)})
    ct = replace(trained, study=replace(trained.study, elements=elements))
    pair, out = ContrastPair("T1w", "T2w"), tmp_path / "made"
    with pytest.raises(BadStudy, match="T2w has values in a unit"):
        synthesize_volume(ct, pair, series, out, SynthesisOptions(dicom=True))
    assert not out.exists()


def test_an_uncertainty_map_lies_beside_the_image_and_says_what_it_is(
    ask: Ask, heads: dict[str, NDArray[np.float32]], save_volume: SaveVolume, tmp_path: Path
):
    source = save_volume(tmp_path / "head.nii.gz", heads["T1w"], AXES)
    plain, out, unsure = (tmp_path / f"{n}.nii.gz" for n in ("plain", "made", "unsure"))
    assert ask(source, plain).code == 0
    done = ask(source, out, "--uncertainty", unsure)
    assert done.code == 0, done.err
    assert np.array_equal(read_voxels(plain), read_voxels(out))
    spread = read_voxels(unsure)
    assert spread.shape == read_voxels(out).shape
    assert 0 <= spread.min() < spread.max() < 0.5
    assert sidecar(tmp_path / "made.json")["Uncertainty"] == {
        "By": "views",
        "Meaning": SPREAD_MEANING,
    }
    assert ask(source, tmp_path / "b.nii", "--uncertainty", tmp_path / "u.nii").code == 0
    assert np.array_equal(read_voxels(tmp_path / "u.nii"), spread)


def test_views_undo_what_they_do():
    images = np.zeros((2, 12, 12), np.float32)
    images[:, 4:8, 4:8] = np.random.default_rng(1).random((2, 4, 4), np.float32)
    for view in VIEWS:
        seen = replace(view, power=1.0).there(images)
        assert np.array_equal(replace(view, power=1.0).back(seen), images)


@pytest.mark.parametrize(
    ("kind", "sentence"),
    [
        ("dropout", "its network has no dropout (task.dropout is 0), so every pass gives the same"),
        (
            "seeds",
            "is no run of a comparison with several seeds; make one (compare --seeds 3), or ",
        ),
        ("faith", "--uncertainty-by faith: is unknown; known: views, dropout, rounds, seeds"),
    ],
)
def test_what_cannot_be_compared_is_refused(
    kind: str,
    sentence: str,
    ask: Ask,
    heads: dict[str, NDArray[np.float32]],
    save_volume: SaveVolume,
    tmp_path: Path,
):
    source = save_volume(tmp_path / "head.nii.gz", heads["T1w"], AXES)
    words = ("--uncertainty", tmp_path / "unsure.nii", "--uncertainty-by", kind)
    done = ask(source, tmp_path / "made.nii", *words)
    assert (done.code, done.out) == (2, "")
    assert sentence in done.err
    assert [path.name for path in tmp_path.iterdir()] == ["head.nii.gz"]


@pytest.fixture
def cohort(heads: dict[str, NDArray[np.float32]], save_volume: SaveVolume, tmp_path: Path) -> Path:
    """A patient with T1w alone, one with T1w and T2w, and one with FLAIR alone."""
    held = {"sub-1": ("T1w",), "sub-2": ("T1w", "T2w"), "sub-3": ("FLAIR",)}
    for patient, contrasts in held.items():
        for contrast in contrasts:
            path = tmp_path / "cohort" / f"{patient}_{contrast}.nii.gz"
            save_volume(path, heads[contrast], AXES)
    return tmp_path / "cohort"


@pytest.fixture
def fill(
    folder: Path, cohort: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Ask:
    def asked(out: Path, *more: str | Path) -> Done:
        words = ("--site", "alder", "--missing", cohort, out, *more)
        return inside(monkeypatch, capsys, "synthesize", folder, *words)

    return asked


def table(out: Path) -> list[tuple[str, ...]]:
    with (out / "synthesized.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    return [(r["patient"], r["contrast"], r["source"], r["state"]) for r in rows]


MADE = [
    ("sub-1", "PDw", "", "no source"),
    ("sub-1", "T2w", "T1w", "made"),
    ("sub-2", "PDw", "T2w", "made"),
    ("sub-3", "PDw", "", "no source"),
    ("sub-3", "T2w", "", "no source"),
]


def test_all_that_a_cohort_lacks_is_made_once_in_a_folder_apart(
    fill: Ask, cohort: Path, tmp_path: Path
):
    out = tmp_path / "synthetic"
    assert fill(out).code == 0
    assert sorted(table(out)) == MADE
    made = sorted(path.name for path in out.iterdir())
    assert made == [
        "sub-1_desc-synthetic_T2w.json",
        "sub-1_desc-synthetic_T2w.nii.gz",
        "sub-2_desc-synthetic_PDw.json",
        "sub-2_desc-synthetic_PDw.nii.gz",
        "synthesized.csv",
    ]
    assert sidecar(out / made[0])["Sources"] == ["sub-1_T1w.nii.gz"]
    before = {path: path.stat().st_mtime_ns for path in out.glob("*.nii.gz")}
    (out / "sub-2_desc-synthetic_PDw.nii.gz").unlink()  # as where a stopped command had not got to
    assert fill(out).code == 0
    again = [(*row[:3], {"made": "there already"}.get(row[3], row[3])) for row in MADE]
    again[2] = MADE[2]
    assert sorted(table(out)) == again
    kept = out / "sub-1_desc-synthetic_T2w.nii.gz"
    assert kept.stat().st_mtime_ns == before[kept]


def test_what_was_made_is_never_taken_for_measured(fill: Ask, cohort: Path, tmp_path: Path):
    out = tmp_path / "synthetic"
    assert fill(out).code == 0
    with pytest.raises(BadSite, match="synthetic, so none of a site's data; move to another fold"):
        find_sessions(out)
    done = fill(cohort / "synthetic")
    assert done.code == 2
    assert "lies in the cohort's own folder, where training would find it" in done.err


def test_the_best_source_by_validation_is_taken(
    folder: Path, heads: dict[str, NDArray[np.float32]]
):
    from grandrounds.inference.missing import ranked_pairs
    from grandrounds.inference.trained_model import load_trained_model

    ranked = ranked_pairs(load_trained_model(folder, "birch"))
    assert {each.pair.label for each in ranked} == {"T1w->T2w", "FLAIR->T2w"}
    scores = [each.score or 0.0 for each in ranked]
    assert scores == sorted(scores, reverse=True)
    assert 0 < scores[-1] < scores[0]


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("--from", "T1w"), "--missing chooses sources and targets itself; leave out --from"),
        (("--dicom",), "--missing chooses sources and targets itself; leave out --dicom"),
    ],
)
def test_missing_takes_no_word_on_one_volume(
    words: tuple[str, ...], sentence: str, fill: Ask, tmp_path: Path
):
    done = fill(tmp_path / "synthetic", *words)
    assert done.code == 2
    assert sentence in done.err


def test_a_damaged_volume_costs_itself_alone(fill: Ask, cohort: Path, tmp_path: Path):
    bad = cohort / "sub-1_T1w.nii.gz"
    bad.write_bytes(bad.read_bytes()[:500])
    assert fill(tmp_path / "synthetic").code == 0
    assert ("sub-1", "T2w", "T1w", "refused") in table(tmp_path / "synthetic")
    assert ("sub-2", "PDw", "T2w", "made") in table(tmp_path / "synthetic")


def test_python_does_the_same(folder: Path, cohort: Path, tmp_path: Path):
    model = gr.FinishedRun(folder).model("alder")
    made = model.synthesize(cohort / "sub-1_T1w.nii.gz", tmp_path / "made.nii.gz", "T1w->T2w")
    found = model.synthesize_missing(cohort, tmp_path / "synthetic")
    assert made.sidecar == sidecar(tmp_path / "made.json")
    [file] = [row["file"] for row in found.rows if row["patient"] == "sub-1" and row["file"]]
    assert np.array_equal(read_voxels(tmp_path / "synthetic" / file), read_voxels(made.path))
