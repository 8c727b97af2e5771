"""A folder is prepared whole: what is done stays, and what failed costs itself."""

import gzip
import json
import os
import struct
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from grandrounds.core.errors import BadFolder, BadSite, BadStudy
from grandrounds.core.processes import hold
from grandrounds.data.preparation import cohort
from grandrounds.data.preparation.cohort import Outcome, prepare_folder
from grandrounds.data.preparation.settings import Preparation
from grandrounds.data.session_files import PREPARATION, UNFINISHED, find_sessions
from grandrounds.study.site_file import read_site
from tests.helpers.scanned import head, loaded, rigid, save, save_session

QUICK = {"bias": False, "registration": "none"}


def prepared(source: Path, data: Path, **settings: object) -> Mapping[str, Outcome]:
    wanted = Preparation(source, **(QUICK | settings))  # type: ignore[arg-type]
    outcomes, _ = prepare_folder(wanted, data, workers=2, told=lambda *_: None)
    return {outcome.session: outcome for outcome in outcomes}


def states(outcomes: Mapping[str, Outcome]) -> dict[str, str]:
    return {name: outcome.state for name, outcome in outcomes.items()}


def files_in(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in sorted(folder.iterdir()) if p.is_file()}


@pytest.fixture
def source(tmp_path: Path) -> Path:
    for who in ("sub-1", "sub-2_ses-a"):
        save_session(tmp_path / "raw", who)
    return tmp_path / "raw"


def test_a_second_run_makes_nothing_again_and_a_change_makes_its_session_alone(
    source: Path, tmp_path: Path
):
    data = tmp_path / "ready"
    assert set(states(prepared(source, data)).values()) == {"prepared"}
    first = files_in(data)
    again = prepared(source, data)
    assert set(states(again).values()) == {"unchanged"}
    assert all(outcome.quality for outcome in again.values())
    save(source / "sub-1_T1w.nii.gz", head("sub-9").contrasts["T1w"])
    assert states(prepared(source, data)) == {"sub-1": "prepared", "sub-2_ses-a": "unchanged"}
    os.utime(source / "sub-1_T1w.nii.gz")  # another time, the same content
    assert set(states(prepared(source, data)).values()) == {"unchanged"}
    assert set(states(prepared(source, data, intensity="white-matter")).values()) == {"prepared"}
    assert files_in(data).keys() == first.keys()
    assert [files.masks.keys() for files in find_sessions(data)] == [{"brain"}, {"brain"}]


@pytest.mark.slow
@pytest.mark.full
def test_two_preparations_with_every_step_are_the_same_bytes(tmp_path: Path):
    save_session(tmp_path / "raw", moved=rigid((3.0, 0.0, 2.0), (4.0, 3.0, -2.0)))
    for folder in ("one", "two"):
        done = prepared(
            tmp_path / "raw", tmp_path / folder, bias=True, registration="rigid", brain="simple"
        )
        assert states(done) == {"sub-1": "prepared"}, done
    assert files_in(tmp_path / "one") == files_in(tmp_path / "two")


def test_a_bad_session_costs_itself_and_says_why(source: Path, tmp_path: Path):
    data = tmp_path / "ready"
    prepared(source, data)
    (source / "sub-1_T2w.nii.gz").write_bytes(b"no volume")
    done = prepared(source, data)
    assert states(done) == {"sub-1": "refused", "sub-2_ses-a": "unchanged"}
    assert "sub-1_T2w.nii.gz: cannot be read" in done["sub-1"].reason
    assert not list(data.glob("sub-1_*")), "what was made of other files is not trained on"
    assert not (data / UNFINISHED).exists()


@pytest.mark.parametrize(
    ("side", "said"),
    [
        (600, "600 x 600 x 600 voxels; a volume to prepare has at most"),
        (30_000, "at most 536870912"),
    ],
)
def test_a_volume_of_absurd_size_is_refused_before_it_is_read(
    side: int, said: str, source: Path, tmp_path: Path
):
    plain = bytearray(gzip.decompress((source / "sub-1_T1w.nii.gz").read_bytes())[:400])
    struct.pack_into("<4h", plain, 40, 3, side, side, side)
    (source / "sub-1_T1w.nii.gz").write_bytes(gzip.compress(bytes(plain)))
    done = prepared(source, tmp_path / "ready")
    assert said in done["sub-1"].reason


def test_a_device_in_place_of_a_volume_is_not_read(source: Path, tmp_path: Path):
    (source / "sub-1_T1w.nii.gz").unlink()
    os.mkfifo(source / "sub-1_T1w.nii.gz")
    done = prepared(source, tmp_path / "ready")
    assert states(done) == {"sub-1": "refused", "sub-2_ses-a": "prepared"}
    assert "is no file" in done["sub-1"].reason


@pytest.mark.parametrize("text", ["[1, 2]", "{" * 5000, '{"EchoTime": NaN', "\0" * 40, "9" * 2**21])
def test_a_sidecar_that_is_none_costs_its_session(text: str, tmp_path: Path):
    save_session(tmp_path / "raw")
    (tmp_path / "raw/sub-1_T1w.json").write_text(text)
    done = prepared(tmp_path / "raw", tmp_path / "ready")
    assert "is no sidecar" in done["sub-1"].reason


def test_a_link_in_the_folder_of_results_is_replaced_and_never_written_through(
    source: Path, tmp_path: Path
):
    data, victim = tmp_path / "ready", tmp_path / "victim"
    prepared(source, data)
    victim.write_bytes(b"another's")
    (data / "sub-1_T1w.nii.gz").unlink()
    (data / "sub-1_T1w.nii.gz").symlink_to(victim)
    assert states(prepared(source, data))["sub-1"] == "prepared"
    assert victim.read_bytes() == b"another's"
    assert not (data / "sub-1_T1w.nii.gz").is_symlink()


def test_a_link_in_place_of_the_records_is_refused(source: Path, tmp_path: Path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "ready").mkdir()
    (tmp_path / "ready" / PREPARATION).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(BadSite, match="is a link"):
        prepared(source, tmp_path / "ready")
    assert not list((tmp_path / "elsewhere").iterdir())


@pytest.mark.parametrize("where", [".", "sub", ".."])
def test_results_never_lie_in_with_what_they_are_made_from(
    where: str, source: Path, tmp_path: Path
):
    before = files_in(source)
    with pytest.raises(BadSite, match="two folders, neither inside the other"):
        prepared(source, source / where)
    (tmp_path / "link").symlink_to(source)
    with pytest.raises(BadSite, match="two folders"):
        prepared(source, tmp_path / "link")
    assert files_in(source) == before


def test_volumes_of_others_are_refused_and_all_else_is_left_alone(source: Path, tmp_path: Path):
    data = tmp_path / "ready"
    (data / "notes").mkdir(parents=True)
    (data / "README").write_text("mine")
    prepared(source, data)
    assert (data / "README").read_text() == "mine"
    (data / "sub-7_T1w.nii.gz").write_bytes(b"another's")
    with pytest.raises(BadSite, match=r"sub-7_T1w.nii.gz: not made here"):
        prepared(source, data)
    assert (data / "sub-7_T1w.nii.gz").read_bytes() == b"another's"


def test_what_a_killed_process_left_is_made_anew_and_nothing_trains_on_it_before(
    source: Path, tmp_path: Path
):
    """As after a kill between two files: a record that is not done, a torn file, the marker."""
    data = tmp_path / "ready"
    prepared(source, data)
    whole = files_in(data)
    record = data / PREPARATION / "sub-1.json"
    text = json.loads(record.read_text())
    record.write_text(json.dumps(text | {"done": False, "stamps": {}}))
    (data / ".sub-1_T1w.nii.gz.4242.tmp").write_bytes(b"torn")
    (data / "sub-1_T2w.nii.gz").unlink()
    (data / UNFINISHED).write_text("")
    with pytest.raises(BadSite, match="its preparation was stopped before its end"):
        find_sessions(data)
    assert states(prepared(source, data)) == {"sub-1": "prepared", "sub-2_ses-a": "unchanged"}
    assert files_in(data) == whole
    find_sessions(data)


def test_a_patient_who_is_gone_from_the_source_is_gone_from_the_results(
    source: Path, tmp_path: Path
):
    data = tmp_path / "ready"
    prepared(source, data)
    for path in source.glob("sub-2*"):
        path.unlink()
    wanted = Preparation(source, **QUICK)  # type: ignore[arg-type]
    _, removed = prepare_folder(wanted, data, workers=1, told=lambda *_: None)
    assert removed == 3
    assert not list(data.glob("sub-2*"))


def test_two_processes_do_not_prepare_one_folder(source: Path, tmp_path: Path):
    (tmp_path / "ready" / PREPARATION).mkdir(parents=True)
    held = hold(tmp_path / "ready" / PREPARATION / "lock")
    assert held is not None
    with pytest.raises(BadFolder, match="is being prepared by another process"):
        prepared(source, tmp_path / "ready")
    os.close(held)
    assert set(states(prepared(source, tmp_path / "ready")).values()) == {"prepared"}


def test_a_table_of_patients_comes_along(source: Path, tmp_path: Path):
    table = source / "participants.tsv"
    table.write_text("participant_id\tage\nsub-1\t50\n")
    prepared(source, tmp_path / "ready")
    copy = tmp_path / "ready/participants.tsv"
    assert copy.read_bytes() == table.read_bytes()
    copy.write_text("mine")
    prepared(source, tmp_path / "ready")
    assert copy.read_text() == "mine"


def test_a_session_without_the_wanted_reference_takes_another_and_says_so(
    source: Path, tmp_path: Path
):
    (source / "sub-1_T1w.nii.gz").unlink()
    done = prepared(source, tmp_path / "ready", reference=("T1w",))
    assert [done[name].quality["reference"] for name in sorted(done)] == ["T2w", "T1w"]


def test_a_process_that_is_ended_costs_its_session(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(cohort, "_prepare_one", end_at_once)
    done = prepared(source, tmp_path / "ready")
    assert set(states(done).values()) == {"failed"}
    assert "its process was ended from outside (exit code 9)" in done["sub-1"].reason


def end_at_once(order: object, sender: object) -> None:
    os._exit(9)


def test_masks_keep_their_labels(source: Path, tmp_path: Path):
    mask = head().masks["white"]
    save(source / "sub-1_lesionmask.nii.gz", mask * 2, np.uint8)
    prepared(source, tmp_path / "ready")
    made = loaded(tmp_path / "ready/sub-1_lesionmask.nii.gz")
    assert made.get_data_dtype() == np.uint8
    assert set(np.unique(np.asarray(made.dataobj))) == {0, 2}


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ("spacing = 0.01", "spacing has 0.01 mm"),
        ("spacing = [1, 1, 99]", "spacing has 99 mm"),
        ("reference = []", "reference is empty"),
        ('brain = "none"\nstrip = true', "strip needs a brain mask"),
        ('registration = "elastic"', "prepare.registration"),
        ("wrap = true", "wrap"),
    ],
)
def test_a_wrong_table_is_refused_in_a_sentence(line: str, sentence: str, tmp_path: Path):
    path = tmp_path / "oak.toml"
    path.write_text(f'name = "oak"\ndata = "ready"\n[prepare]\nsource = "raw"\n{line}\n')
    with pytest.raises(BadSite, match=sentence):
        read_site(path)


def test_a_table_is_read_and_its_folder_starts_at_the_file(tmp_path: Path):
    path = tmp_path / "oak.toml"
    path.write_text('name = "oak"\ndata = "ready"\n[prepare]\nsource = "raw"\nspacing = 1\n')
    found = read_site(path).prepare
    assert found is not None
    assert found.source == tmp_path / "raw"
    assert found.lengths == (1.0, 1.0, 1.0)
    with pytest.raises(BadStudy):
        replace(found, spacing=-1.0)
