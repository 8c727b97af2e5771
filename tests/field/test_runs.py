"""Runs, finished models and machines that are not as they should be."""

import resource
import shutil
import socket
import subprocess
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from grandrounds.core.errors import BadFolder
from grandrounds.core.events import Event, RoundFinished
from grandrounds.data.measured import SYNTHETIC_TEXT
from grandrounds.runs.loop import run_study as run
from grandrounds.runs.site_data import open_named
from grandrounds.study.file import example, read_study
from grandrounds.study.site_file import read_site
from tests.helpers.command import PROGRAM, Done, program

Ask = Callable[..., Done]
Made = Callable[[str], Path]


@pytest.fixture(scope="module")
def finished(made: Made) -> Path:
    """The finished run of case 30, of one round."""
    here = made("30")
    run(read_study(here / "study.toml"), here / "run", files=[read_site(here / "alder.toml")])
    return here / "run"


@pytest.mark.slow
@pytest.mark.parametrize("folder", ["hyphen", "long", "startup", "plain"])
def test_kits_are_made_for_every_study_that_check_accepts(
    ask: Ask, made: Made, tmp_path: Path, folder: str
):
    study = made("23") / folder / "study.toml"
    words = ("provision", study, "--server", "fl.example.org", "--out", tmp_path / "kits")
    done = ask(tmp_path, "federation", *words)
    assert done.code == 0, done.err
    assert (tmp_path / "kits").is_dir()


@pytest.mark.slow
def test_a_site_accepts_in_a_folder_with_brackets_and_reads_where(ask: Ask, tmp_path: Path):
    """filequery#51, ai-toolkit#692: a name is no markup, and `:b:` no emoji."""
    here = tmp_path / "[red]kits[/red] [1] :b:"
    words = ("provision", example("tiny"), "--server", "localhost", "--out", here)
    done = ask(tmp_path, "federation", *words)
    assert f"{here}/alder " in done.out
    done = ask(tmp_path, "site", "accept", example("tiny"), "--kit", here / "alder")
    assert (done.code, done.err) == (0, "")
    assert f"signed in {here}/alder/local/accepted/" in done.out


@pytest.mark.parametrize("folder", ["server", "admin", "case", "longname", "space", "slash"])
def test_a_name_that_no_kit_can_have_is_refused_by_check(ask: Ask, made: Made, folder: str):
    done = ask(made("23") / folder, "check", "study.toml")
    assert (done.code, done.out) == (2, "")
    assert len(done.err.splitlines()) == 1


@pytest.mark.slow
def test_a_loss_that_is_no_number_stops_the_run_with_site_and_round(
    ask: Ask, made: Made, tmp_path: Path
):
    here = made("25")
    words = ("run", "study.toml", "--site", "alder.toml", "--out", tmp_path / "run", "--quiet")
    done = ask(here, *words, "--set", "training.learning_rate=1e30")
    assert done.code == 1
    assert "site 'alder' failed in round 1 (train)" in done.err
    assert "Traceback" not in done.err
    assert not list((tmp_path / "run").rglob("round-000001.safetensors"))
    done = ask(here, *words, "--set", "training.learning_rate=inf")
    assert (done.code, done.out) == (2, "")
    assert "training.learning_rate" in done.err


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["seg", "syn"])
def test_a_last_batch_of_one_trains_under_batch_norm_or_is_refused_by_check(
    ask: Ask, made: Made, tmp_path: Path, kind: str
):
    words = ("study.toml", "--site", "alder.toml", "--quiet")
    checked = ask(made("26") / kind, "check", *words)
    done = ask(made("26") / kind, "run", *words, "--out", tmp_path / "run")
    assert done.code == checked.code, done.err
    assert done.code in (0, 2)
    assert "more than 1 value per channel" not in done.err


@pytest.mark.slow
def test_a_guest_with_one_patient_is_scored(ask: Ask, made: Made, finished: Path):
    guest = made("27") / "newcomer.toml"
    done = ask(finished.parent, "evaluate", finished, "--site", guest)
    assert done.code == 0, done.err
    rows = (finished / "evaluated/newcomer.csv").read_text().splitlines()
    assert len({row.split(",")[rows[0].split(",").index("patient")] for row in rows[1:]}) == 1


@pytest.mark.full
@pytest.mark.parametrize("change", ["a patient more", "another volume"])
def test_a_run_does_not_go_on_with_other_data(made: Made, tmp_path: Path, change: str):
    here = tmp_path / "site"
    shutil.copytree(made("29"), here)
    study, file = read_study(here / "study.toml"), read_site(here / "alder.toml")

    def stop(event: Event) -> None:
        if isinstance(event, RoundFinished) and event.round == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(study, here / "run", files=[file], listeners=[stop])
    for contrast in ("T1w", "T2w"):
        source = here / f"data/sub-01_{contrast}.nii.gz"
        name = "sub-77" if change == "a patient more" else "sub-02"
        shutil.copy(source, here / f"data/{name}_{contrast}.nii.gz")
    with pytest.raises(BadFolder, match="site 'alder' has other data than it trained on before"):
        run(study, here / "run", files=[file], resume=True)


INPUTS = ("plain", "nifti2", "four", "qform", "big", "extension", "micron")


@pytest.mark.slow
def test_a_synthetic_volume_lies_on_its_inputs_grid_and_tells_nothing_of_its_header(
    ask: Ask, finished: Path, tmp_path: Path
):
    voxels: list[np.ndarray] = []
    for name in INPUTS:
        source, out = finished.parent / f"{name}.nii.gz", tmp_path / f"{name}.nii.gz"
        words = ("--site", "alder", "--from", "T1w", "--to", "T2w")
        done = ask(tmp_path, "synthesize", finished, *words, source, out)
        assert done.code == 0, done.err
        before, after = nib.load(source), nib.load(out)
        assert isinstance(before, nib.Nifti1Image)
        assert isinstance(after, nib.Nifti1Image)
        assert after.affine is not None
        assert before.affine is not None
        assert np.allclose(after.affine, before.affine, rtol=1e-6)
        for code in ("sform_code", "qform_code"):
            assert int(after.header[code]) == int(before.header[code])
        assert after.header.get_xyzt_units()[0] == before.header.get_xyzt_units()[0]
        assert after.get_data_dtype() == np.float32
        assert not after.header.extensions
        assert bytes(after.header["descrip"]).strip(b"\0").decode() == SYNTHETIC_TEXT
        texts = ("aux_file", "intent_name", "db_name", "data_type")
        assert not [text for text in texts if bytes(after.header[text]).strip(b"\0")]
        voxels.append(np.asarray(after.dataobj))
    assert voxels[0].std() > 0
    assert all(np.array_equal(each, voxels[0]) for each in voxels)


@pytest.mark.slow
def test_a_port_that_is_taken_is_named(ask: Ask, finished: Path):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        done = ask(finished.parent, "report", finished, "--serve", "--port", str(port))
    assert (done.code, done.out) == (2, "")
    assert str(port) in done.err
    assert len(done.err.splitlines()) == 1


def test_a_home_that_cannot_be_written_is_named_with_what_to_choose(
    made: Made, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.delenv("GRANDROUNDS_CACHE")
    monkeypatch.setenv("HOME", "/dev/null/nobody")
    here = made("33")
    with pytest.raises(BadFolder) as caught:
        open_named(read_study(here / "study.toml"), [here / "alder.toml"])
    assert "/dev/null/nobody/.cache/grandrounds: cannot keep prepared slices" in str(caught.value)
    assert "GRANDROUNDS_CACHE" in str(caught.value)


@pytest.mark.full
def test_paths_with_spaces_umlauts_and_brackets_are_printed_whole(
    made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("LC_ALL", "C")
    monkeypatch.setenv("COLUMNS", "60")
    here = next(path for path in made("34").iterdir() if path.name != "link")
    study, site = here / "study.toml", made("34") / "link" / "alder.toml"
    out = here / "run [1]"
    done = program("run", study, "--site", site, "--out", out)
    assert done.code == 0, done.err
    assert f"report: {out}/report.html\n" in done.out
    (here / "d ä [b]").rename(here / "moved")
    done = program("check", study, "--site", site)
    (here / "moved").rename(here / "d ä [b]")
    assert done.code == 2
    assert "d ä [b]: No such file or directory" in done.err


def small_files() -> None:
    """Let no file grow beyond 60 kB: what a disk does that is full."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, 60_000))


@pytest.mark.full
def test_a_full_disk_is_one_sentence_and_nothing_half_written_is_read(made: Made, tmp_path: Path):
    here = tmp_path / "site"
    shutil.copytree(made("35"), here)
    words = ("run", here / "study.toml", "--site", here / "alder.toml", "--out", here / "run")
    done = program(*words, "--quiet", limit=small_files)
    assert done.code in (1, 2)
    assert len(done.err.splitlines()) == 1
    assert "cannot keep prepared slices" in done.err or "cannot write" in done.err
    resumed = ("--resume",) if (here / "run/study.toml").exists() else ()
    done = program(*words, "--quiet", *resumed)
    assert done.code == 0, done.err


@pytest.mark.slow
def test_a_reader_who_leaves_is_no_error(made: Made):
    here = made("36")
    command = f"{PROGRAM} check study.toml --site alder.toml | head -1"
    done = subprocess.run(command, shell=True, cwd=here, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == 'name = "field"'
    assert done.stderr == ""
