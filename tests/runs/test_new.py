"""A study is proposed from what sites have, says why, and is one that check and run accept."""

import json
import tomllib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from grandrounds.data.partition import PartitionPlan, assign, read_dataset, write_sites
from grandrounds.runs import proposal
from grandrounds.study.study import Study
from scripts.heart import main as write_heart
from tests.conftest import SaveVolume
from tests.helpers.command import Done, inside

pytestmark = pytest.mark.slow
Command = Callable[..., Done]


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    return lambda *words: inside(monkeypatch, capsys, *words)


def given(sites: list[Path]) -> list[str | Path]:
    return [word for path in sites for word in ("--site", path)]


def assert_it_runs(command: Command, study: Path, sites: list[Path], out: Path) -> None:
    checked = command("check", study, *given(sites), "--quiet")
    assert (checked.code, checked.err) == (0, "")
    words = (
        "--rounds",
        "1",
        "--out",
        out,
        "--quiet",
        "--set",
        "training.threads=1",
        "--devices",
        "cpu",
    )
    done = command("run", study, *given(sites), *words)
    assert done.code == 0, done.err
    assert (out / "scores.csv").exists()


def site_files(folder: Path, **data: Path) -> list[Path]:
    for name, path in data.items():
        text = f'name = "{name}"\ndata = "{path}"\ncache = "{folder / "cache"}"\n'
        (folder / f"{name}.toml").write_text(text)
    return [folder / f"{name}.toml" for name in data]


@pytest.fixture
def volumes(tmp_path: Path, save_volume: SaveVolume, head: np.ndarray) -> Callable[..., Path]:
    """A folder of one ball for each patient, in these contrasts and masks."""

    def write(name: str, *kinds: str, patients: int = 4, mm: float = 8.0, zoom: int = 1) -> Path:
        ball = np.kron(head, np.ones((zoom, zoom, 1), np.float32))
        affine = np.diag([mm, mm, 8.0, 1.0])
        for number, kind in ((n, k) for n in range(patients) for k in kinds):
            mask = (ball > 70).astype(np.uint8)
            voxels = mask if kind.endswith("mask") else ball + number + len(kind)
            save_volume(tmp_path / name / f"sub-Jane{number}_{kind}.nii.gz", voxels, affine)
        return tmp_path / name

    return write


def test_two_scanners_are_proposed_synthesis_and_the_study_runs(
    command: Command, tmp_path: Path, real_data: Path
):
    mri, study = real_data / "mri", tmp_path / "real.toml"
    sites = site_files(tmp_path, lju15t=mri / "site-lju15t", lju3t=mri / "site-lju3t")
    done = command(
        "new", study, *given(sites), "--set", "elements.spacing=[5.0, 5.0]", "--json", "--quiet"
    )
    assert done.code == 0, done.err
    said = json.loads(done.out)
    assert said["choices"]["task.kind"]["value"] == "synthesis"
    assert said["choices"]["elements.contrasts"]["value"] == ["T1w", "T2w", "FLAIR"]
    assert said["choices"]["elements.spacing"] == {"value": [5.0, 5.0], "why": "as asked"}
    assert said["choices"]["elements.size"]["value"] == [48, 32]  # 216 x 155 mm at 5 mm
    labels = ["T1w->T2w", "T1w->FLAIR"]
    assert said["tasks"] == {"lju15t": labels, "lju3t": labels}
    assert said["left_out"] == ["masks of lesion left out: only lju3t has such files"]
    text = study.read_text()
    for patient in ("sub-", "lesion"):
        assert patient not in text
    assert_it_runs(command, study, sites, tmp_path / "run")
    before = study.read_bytes()
    again = command("new", study, *given(sites))
    assert again.code == 2
    assert "exists already, and is not written over" in again.err
    assert study.read_bytes() == before


def test_four_tables_are_proposed_a_prediction(command: Command, tmp_path: Path, real_data: Path):
    write_heart(real_data / "tabular" / "heart", tmp_path / "heart")
    sites = sorted((tmp_path / "heart").glob("*.toml"))
    study = tmp_path / "heart.toml"
    done = command("new", study, *given(sites))
    assert done.code == 0, done.err
    table = tomllib.loads(study.read_text())
    assert (table["task"]["kind"], table["task"]["threshold"]) == ("tabular", 0.0)
    assert table["elements"]["variables"][-1] == "num"
    # Nobody's cholesterol is known in Switzerland: the column is empty there.
    assert len(table["elements"]["variables"]) == 13
    assert "note: chol is left out: only cleveland, hungarian, va have it" in done.out
    assert {label for site in table["site"] for label in site["tasks"]} == {"variables->num"}
    assert_it_runs(command, study, sites, tmp_path / "run")


def test_image_stacks_are_proposed_a_classification(
    command: Command, tmp_path: Path, real_data: Path
):
    source = real_data / "classification" / "pneumoniamnist_subset.npz"
    plan, pool = PartitionPlan(2, 2.0, 1, cases=120), read_dataset(source, "pneumonia")
    write_sites(pool, assign(pool.labels, plan), plan, tmp_path / "xray")
    sites = sorted((tmp_path / "xray").glob("*.toml"))
    study = tmp_path / "xray.toml"
    done = command("new", study, *given(sites), "--task", "CXR->pneumonia", "--quiet")
    assert done.code == 0, done.err
    table = tomllib.loads(study.read_text())
    assert table["task"]["kind"] == "classification"
    assert (table["elements"]["contrasts"], table["elements"]["size"]) == (["CXR"], [28, 28])
    assert_it_runs(command, study, sites, tmp_path / "run")


def test_masks_at_every_site_are_proposed_segmentation(
    command: Command, tmp_path: Path, volumes: Callable[..., Path]
):
    first = volumes("oak", "T1w", "FLAIR", "T2w", "lesionmask")
    second = volumes("yew", "T1w", "FLAIR", "lesionmask", patients=5, mm=10.0)
    study = tmp_path / "new" / "lesions.toml"
    study.parent.mkdir()
    done = command("new", study, *given([first, second]))
    assert done.code == 0, done.err
    text = study.read_text()
    table = tomllib.loads(text)
    assert [site["tasks"] for site in table["site"]] == [["T1w+FLAIR->lesion"]] * 2
    assert table["elements"]["spacing"] == [9.0, 9.0]  # the median of 8 and 10
    assert table["elements"]["split"]["validation"] == 0.2
    assert "# every site has masks of lesion with T1w, FLAIR: oak of 4 patients, yew of 5" in text
    assert "note: T2w left out: only oak has such files" in done.out
    assert "T2w" not in text
    assert "Jane" not in text + done.out + done.err
    sites = [study.parent / "oak.toml", study.parent / "yew.toml"]
    assert tomllib.loads(sites[0].read_text()) == {"name": "oak", "data": str(first)}
    assert_it_runs(command, study, sites, tmp_path / "run")


def test_every_choice_can_be_another(
    command: Command, tmp_path: Path, volumes: Callable[..., Path]
):
    sites = [volumes("oak", "T1w", "T2w", "lesionmask"), volumes("yew", "T1w", "T2w", "lesionmask")]
    study = tmp_path / "other.toml"
    asked = ("task.kind=synthesis", "method.kind=fedavg", "rounds=3", "training.batch_size=2")
    more = ("elements.size=[64, 64]", "task.width=8", "training.epochs=2", "elements.split.salt=x")
    words = [word for pair in (*asked, *more) for word in ("--set", pair)]
    done = command("new", study, *given(sites), "--task", "T2w->T1w", *words, "--quiet")
    assert done.code == 0, done.err
    table = tomllib.loads(study.read_text())
    assert [site["tasks"] for site in table["site"]] == [["T2w->T1w"]] * 2
    assert (table["method"]["kind"], table["rounds"], table["task"]["width"]) == ("fedavg", 3, 8)
    assert (table["training"]["batch_size"], table["training"]["epochs"]) == (2, 2)
    assert table["elements"]["size"] == [64, 64]
    assert table["elements"]["split"]["salt"].startswith("x")


def test_the_contrasts_that_are_asked_for_are_those_of_the_tasks(
    command: Command, tmp_path: Path, volumes: Callable[..., Path]
):
    sites = [volumes(name, "T1w", "T2w", "FLAIR") for name in ("oak", "yew")]
    asked = 'elements.contrasts=["FLAIR", "T2w"]'
    done = command("new", tmp_path / "two.toml", *given(sites), "--set", asked, "--quiet")
    assert done.code == 0, done.err
    table = tomllib.loads((tmp_path / "two.toml").read_text())
    assert table["elements"]["contrasts"] == ["FLAIR", "T2w"]
    assert {label for site in table["site"] for label in site["tasks"]} == {"FLAIR->T2w"}
    done = command(
        "new",
        tmp_path / "b.toml",
        "--site",
        tmp_path / "oak.toml",
        "--set",
        'elements.contrasts=["CT"]',
    )
    assert done.code == 2
    assert "--set elements.contrasts: not every site has CT; all have T1w, T2w, FLAIR" in done.err


@pytest.mark.parametrize(("room", "spacing", "batch"), [(10**9, 2.0, 8), (4000, 2.5, 1)])
def test_what_this_machine_cannot_hold_is_made_coarser_and_the_batch_smaller(
    command: Command,
    tmp_path: Path,
    volumes: Callable[..., Path],
    monkeypatch: pytest.MonkeyPatch,
    room: int,
    spacing: float,
    batch: int,
):
    def memory(study: Study) -> tuple[float, float]:
        height, width = study.elements.size
        return height * width * study.training.batch_size, room

    monkeypatch.setattr(proposal, "_memory", memory)
    sites = [volumes(name, "T1w", "T2w", mm=2.0, zoom=6) for name in ("oak", "yew")]
    done = command("new", tmp_path / "small.toml", *given(sites), "--json", "--quiet")
    assert done.code == 0, done.err
    choices = json.loads(done.out)["choices"]
    assert choices["elements.spacing"]["value"] == [spacing, spacing]
    assert ("coarser than" in choices["elements.spacing"]["why"]) == (spacing > 2)
    assert choices["training.batch_size"]["value"] == batch


@pytest.mark.parametrize(
    ("first", "second", "sentence"),
    [
        (("T1w",), ("T2w",), "no contrast lies at every site"),
        (("T1w",), ("T1w",), "the sites cannot learn anything together"),
        (("T1w", "FLAIR"), ("T1w", "Flair"), "differ in case alone"),
    ],
)
def test_sites_with_nothing_to_learn_together_are_told_so(
    command: Command,
    tmp_path: Path,
    volumes: Callable[..., Path],
    first: tuple[str, ...],
    second: tuple[str, ...],
    sentence: str,
):
    sites = [volumes("oak", *first), volumes("yew", *second)]
    done = command("new", tmp_path / "study.toml", *given(sites))
    assert done.code == 2
    assert sentence in done.err
    assert not (tmp_path / "study.toml").exists()
    assert "Jane" not in done.err


def test_volumes_and_a_table_are_no_one_study(
    command: Command, tmp_path: Path, volumes: Callable[..., Path]
):
    table = tmp_path / "yew.csv"
    table.write_text("participant_id,age,sick\np1,1,0\np2,2,1\n")
    done = command("new", tmp_path / "study.toml", *given([volumes("oak", "T1w"), table]))
    assert done.code == 2
    assert "the sites have data of several kinds (oak volumes, yew table)" in done.err
