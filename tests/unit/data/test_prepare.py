import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import psutil
import pytest

from grandrounds.core.errors import BadFolder
from grandrounds.data.cohort import HEADROOM, Session
from grandrounds.data.elements import Elements
from grandrounds.data.prepare import prepare_cohort, prepare_session
from grandrounds.data.session_cache import cache_key, cached_session
from grandrounds.data.session_files import find_sessions

SaveVolume = Callable[..., Path]
ELEMENTS = Elements(("T1w", "T2w"), size=(16, 16), spacing=(1.0, 1.0))


def prepared(folder: Path, elements: Elements = ELEMENTS) -> Session:
    return prepare_session(find_sessions(folder)[0], elements)


def tiny(patient: str = "sub-01") -> Session:
    images = np.linspace(0, 1, 18, dtype=np.float32).reshape(2, 1, 3, 3)
    return Session(patient, "", ("T1w",), images, {"lesion": np.ones((2, 3, 3), dtype=np.uint8)})


@pytest.fixture
def site(tmp_path: Path, save_volume: SaveVolume, head: np.ndarray) -> Path:
    for number in (1, 2, 3):
        save_volume(tmp_path / "site" / f"sub-0{number}_T1w.nii.gz", head * number)
        save_volume(
            tmp_path / "site" / f"sub-0{number}_T2w.nii.gz", np.where(head > 0, 140 - head, 0)
        )
    (tmp_path / "site" / "sub-02_T2w.nii.gz").unlink()
    return tmp_path / "site"


def test_contrasts_stand_in_the_order_of_the_study(
    tmp_path: Path, save_volume: SaveVolume, head: np.ndarray
):
    save_volume(tmp_path / "sub-01_T1w.nii", head)
    save_volume(tmp_path / "sub-01_T2w.nii", np.sqrt(head))
    save_volume(tmp_path / "sub-01_PDw.nii", head)
    forth, back = (
        prepared(tmp_path),
        prepared(tmp_path, replace(ELEMENTS, contrasts=("T2w", "T1w"))),
    )
    assert (forth.contrasts, back.contrasts) == (("T1w", "T2w"), ("T2w", "T1w"))
    assert np.array_equal(forth.images[:, 0], back.images[:, 1])
    assert forth.images.dtype == np.float32


def test_the_99th_percentile_of_the_brain_becomes_one_over_the_headroom(
    tmp_path: Path, save_volume: SaveVolume
):
    voxels = np.full((10, 10, 4), -50.0, dtype=np.float32)
    voxels[1:9, 1:9] = 60
    voxels[1:9, 1] = 3000  # bright, but outside of the brain
    brain = np.zeros((10, 10, 4), dtype=np.uint8)
    brain[2:8, 2:8] = 1
    save_volume(tmp_path / "sub-01_T1w.nii", voxels)
    save_volume(tmp_path / "sub-01_brainmask.nii", brain)
    session = prepared(tmp_path, replace(ELEMENTS, size=(10, 10)))
    picture = session.image(0, "T1w")
    assert picture[5, 5] == np.float32(1 / HEADROOM)
    assert picture[0, 0] == 0  # negative values
    assert picture[8, 5] == 1  # clipped
    assert session.masks["brain"].sum() == brain.sum()


def test_without_a_brain_mask_the_head_sets_the_scale(tmp_path: Path, save_volume: SaveVolume):
    voxels = np.full((10, 10, 4), 1.0, dtype=np.float32)
    voxels[3:7, 3:7] = 60
    save_volume(tmp_path / "sub-01_T1w.nii", voxels)
    session = prepared(tmp_path, replace(ELEMENTS, size=(10, 10)))
    assert session.image(0, "T1w")[5, 5] == np.float32(1 / HEADROOM)
    assert session.masks == {}


def test_a_slice_is_kept_from_a_quarter_of_the_largest_area(
    tmp_path: Path, save_volume: SaveVolume
):
    voxels = np.zeros((20, 20, 4), dtype=np.float32)
    for index, length in enumerate((4, 5, 10, 2)):  # areas 16, 25, 100, 4
        voxels[:length, :length, index] = 10 + index
    lesion = np.zeros((20, 20, 4), dtype=np.uint8)
    lesion[0, 0, 2] = 1
    save_volume(tmp_path / "sub-01_T1w.nii", voxels)
    save_volume(tmp_path / "sub-01_lesionmask.nii", lesion)
    session = prepared(tmp_path, replace(ELEMENTS, size=(20, 20)))
    assert session.num_slices == 2
    assert session.masks["lesion"].sum(axis=(1, 2)).tolist() == [0, 1]


def test_a_slice_that_one_contrast_shows_in_part_is_dropped(
    tmp_path: Path, save_volume: SaveVolume, head: np.ndarray
):
    partial = head.copy()
    partial[:, :7, 2] = 0
    save_volume(tmp_path / "whole" / "sub-01_T1w.nii", head)
    save_volume(tmp_path / "whole" / "sub-01_T2w.nii", head)
    save_volume(tmp_path / "partial" / "sub-01_T1w.nii", head)
    save_volume(tmp_path / "partial" / "sub-01_T2w.nii", partial)
    whole, partly = prepared(tmp_path / "whole"), prepared(tmp_path / "partial")
    assert partly.num_slices == whole.num_slices - 1


def test_in_plane_spacing_becomes_the_studys_and_slices_stay(
    tmp_path: Path, save_volume: SaveVolume
):
    voxels = np.zeros((40, 40, 3), dtype=np.float32)
    voxels[10:30, 4:36] = 5  # 10 mm from left to right, 16 mm from back to front
    save_volume(tmp_path / "sub-01_T1w.nii", voxels, np.diag([0.5, 0.5, 4.0, 1.0]))
    session = prepared(tmp_path, Elements(("T1w",), size=(20, 24), spacing=(1.0, 1.0)))
    assert session.images.shape == (3, 1, 20, 24)
    inside = session.image(1, "T1w") > 0.4
    assert (inside.sum(axis=0).max(), inside.sum(axis=1).max()) == (16, 10)


def test_a_cohort_is_split_by_patient_and_serves_what_each_session_has(site: Path, tmp_path: Path):
    cohort = prepare_cohort("alder", site, ELEMENTS, cache=tmp_path / "cache")
    assert sorted(session.label for session in cohort) == ["sub-01", "sub-02", "sub-03"]
    assert {s.label: s.contrasts for s in cohort}["sub-02"] == ("T1w",)
    assert [len(cohort.splits[split]) for split in ("train", "validation", "test")] == [2, 0, 1]


def test_prepared_arrays_are_read_only_memory_maps_that_keep_no_file_open(
    site: Path, tmp_path: Path
):
    before = psutil.Process().num_fds()
    cohort = prepare_cohort("alder", site, ELEMENTS, cache=tmp_path / "cache")
    assert psutil.Process().num_fds() == before
    for session in cohort:
        assert not session.images.flags.owndata
        with pytest.raises(ValueError, match="read-only"):
            session.images[0] = 0


def test_a_second_start_prepares_nothing_and_gives_the_same(site: Path, tmp_path: Path):
    def stamps() -> dict[Path, int]:
        return {p: p.stat().st_mtime_ns for p in (tmp_path / "cache").rglob("*") if p.is_file()}

    first = prepare_cohort("alder", site, ELEMENTS, cache=tmp_path / "cache")
    before = stamps()
    again = prepare_cohort("alder", site, ELEMENTS, cache=tmp_path / "cache")
    assert stamps() == before
    assert len(before) == 2 * 3  # three sessions: images and description
    for one, other in zip(first, again, strict=True):
        assert np.array_equal(one.images, other.images)


def test_other_settings_or_other_voxels_are_prepared_anew(
    site: Path, tmp_path: Path, save_volume: SaveVolume, head: np.ndarray
):
    cache = tmp_path / "cache"
    prepare_cohort("alder", site, ELEMENTS, cache=cache)
    prepare_cohort("alder", site, replace(ELEMENTS, size=(8, 8)), cache=cache)
    assert len(list(cache.iterdir())) == 6
    save_volume(site / "sub-01_T1w.nii.gz", head**2)
    prepare_cohort("alder", site, ELEMENTS, cache=cache)
    assert len(list(cache.iterdir())) == 7


def test_equal_files_of_two_patients_stay_two_patients(
    tmp_path: Path, save_volume: SaveVolume, head: np.ndarray
):
    for patient in ("sub-01", "sub-02"):
        save_volume(tmp_path / "site" / f"{patient}_T1w.nii", head)
    cohort = prepare_cohort("alder", tmp_path / "site", ELEMENTS, cache=tmp_path / "cache")
    assert sorted(session.patient for session in cohort) == ["sub-01", "sub-02"]


def test_a_kept_session_comes_back_whole_and_is_made_once(tmp_path: Path):
    made: list[Session] = []

    def make() -> Session:
        made.append(tiny())
        return made[-1]

    key = cache_key("simulated", "7")
    first, again = (cached_session(tmp_path, key, make) for _ in range(2))
    assert len(made) == 1
    for session in (first, again):
        assert (session.patient, session.session, session.contrasts) == ("sub-01", "", ("T1w",))
        assert np.array_equal(session.images, tiny().images)
        assert np.array_equal(session.masks["lesion"], tiny().masks["lesion"])
    assert [path.name for path in tmp_path.iterdir()] == [key]


def test_keys_tell_their_parts_apart():
    assert len({cache_key("a", "bc"), cache_key("ab", "c"), cache_key("abc")}) == 3


def cut(folder: Path) -> None:
    path = folder / "images.npy"
    path.write_bytes(path.read_bytes()[:-5])


def flip(folder: Path) -> None:
    path = folder / "lesion.npy"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def lose(folder: Path) -> None:
    (folder / "images.npy").unlink()


def garble(folder: Path) -> None:
    (folder / "session.json").write_text("{")


def age(folder: Path) -> None:
    (folder / "session.json").write_text(json.dumps({"patient": "sub-01"}))


@pytest.mark.parametrize("damage", [cut, flip, lose, garble, age])
def test_a_damaged_entry_is_made_again(tmp_path: Path, damage: Callable[[Path], None]):
    cached_session(tmp_path, "key", tiny)
    damage(tmp_path / "key")
    session = cached_session(tmp_path, "key", tiny)
    assert np.array_equal(session.images, tiny().images)
    assert np.array_equal(session.masks["lesion"], tiny().masks["lesion"])
    assert [path.name for path in tmp_path.iterdir()] == ["key"]


def test_a_failure_while_making_leaves_nothing_behind(tmp_path: Path):
    def fail() -> Session:
        raise RuntimeError("stopped")

    with pytest.raises(RuntimeError, match="stopped"):
        cached_session(tmp_path, "key", fail)
    assert list(tmp_path.iterdir()) == []


def test_an_entry_kept_by_another_process_meanwhile_is_used(tmp_path: Path):
    def make_after_another() -> Session:
        cached_session(tmp_path, "key", tiny)
        return tiny()

    session = cached_session(tmp_path, "key", make_after_another)
    assert np.array_equal(session.images, tiny().images)
    assert [path.name for path in tmp_path.iterdir()] == ["key"]


def test_an_entry_kept_by_another_process_at_the_last_moment_is_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    rename = Path.rename

    def rename_after_another(path: Path, target: Path) -> Path:
        if path.name == "new":
            monkeypatch.undo()
            cached_session(tmp_path, "key", tiny)
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", rename_after_another)
    assert np.array_equal(cached_session(tmp_path, "key", tiny).images, tiny().images)
    assert [path.name for path in tmp_path.iterdir()] == ["key"]


def test_a_cache_that_cannot_be_written_is_refused(tmp_path: Path):
    (tmp_path / "cache").touch()
    with pytest.raises(BadFolder) as caught:
        cached_session(tmp_path / "cache", "key", tiny)
    assert str(caught.value) == (
        f"{tmp_path / 'cache'}: cannot keep prepared slices ({os.strerror(17)}); "
        'the cache must be a folder that can be written; choose one with cache = "FOLDER" in the '
        "site file, or with GRANDROUNDS_CACHE."
    )


@pytest.mark.slow
def test_real_sites_are_prepared_whole(real_data: Path, tmp_path: Path):
    elements = Elements(("T1w", "T2w", "FLAIR"))
    slices = {"site-lju15t": 240, "site-lju3t": 200}
    for site, expected in slices.items():
        cohort = prepare_cohort(site, real_data / "mri" / site, elements, cache=tmp_path)
        assert sum(session.num_slices for session in cohort) == expected
        for session in cohort:
            assert session.images.shape[1:] == (len(session.contrasts), 128, 128)
            assert 0 <= session.images.min() < session.images.max() <= 1
            assert session.images.mean() > 0.1
