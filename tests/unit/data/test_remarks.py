"""What a site's files cost is counted: windows, slices, grids, masks; and CT has its window."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from grandrounds.core.errors import BadImage, BadSite
from grandrounds.data.availability import check_elements, summarise
from grandrounds.data.cohort import Cohort, Extent
from grandrounds.data.elements import ALL_TESTED, Elements
from grandrounds.data.prepare import prepare_cohort, prepare_session
from grandrounds.data.session_files import find_sessions

SaveVolume = Callable[..., Path]
ELEMENTS = Elements(("T1w",), size=(16, 16), spacing=(1.0, 1.0), split=ALL_TESTED)
CT = replace(ELEMENTS, contrasts=("CT",), intensity={"CT": (0, 80)})


@pytest.fixture
def site(tmp_path: Path, save_volume: SaveVolume, head: np.ndarray) -> Path:
    """Two patients with a brain of 12 x 14 x 6 mm, and a lesion at its left edge."""
    lesion = np.zeros_like(head)
    lesion[0:2, 7, 2:4] = 1
    for patient in ("sub-01", "sub-02"):
        save_volume(tmp_path / "site" / f"{patient}_T1w.nii", head + 1)
        save_volume(tmp_path / "site" / f"{patient}_brainmask.nii", (head > 0).astype(np.uint8))
        save_volume(tmp_path / "site" / f"{patient}_lesionmask.nii", lesion.astype(np.uint8))
    return tmp_path / "site"


def notes_of(site: Path, elements: Elements) -> tuple[Cohort, str]:
    cohort = prepare_cohort("alder", site, elements, cache=site.parent / "cache")
    summary = summarise(cohort, find_sessions(site), elements=elements, tasks=("T1w->lesion",))
    for note in summary.notes:
        assert note.told(frozenset(summary.contents) | {"T1w->lesion"}) is not None
    return cohort, "\n".join(map(str, summary.notes))


def test_a_window_that_holds_all_is_not_spoken_of(site: Path):
    cohort, notes = notes_of(site, ELEMENTS)
    assert "window" not in notes
    [extent] = {session.extents["lesion"] for session in cohort}
    assert extent == Extent(outlined=4, shown=4, kept=4, outside=2)


def test_what_a_window_cuts_away_is_told_in_percent(site: Path):
    """kbressem/prostate158#15: a fifth of the margins is removed."""
    cohort, notes = notes_of(site, replace(ELEMENTS, size=(8, 10)))
    brain = [session.extents["brain"] for session in cohort]
    assert brain[0].shown < brain[0].outlined
    share = round(100 * (1 - brain[0].shown / brain[0].outlined), 1)
    assert f"cuts away part of the brain in 2 of 2 sessions, up to {share} % of it" in notes
    assert "cuts away part of lesions in 2 of 2 sessions, up to 50.0 % of it" in notes
    assert "lesions: 8 mm3 in the files, 4 mm3 after preparation" in notes


def test_a_lesion_cut_away_whole_is_no_empty_mask(site: Path):
    """ivadomed/ms-challenge-2021#23: lesions cropped in preprocessing."""
    elements = replace(ELEMENTS, size=(16, 8))
    cohort, notes = notes_of(site, elements)
    assert all("lesion" not in session.masks for session in cohort)
    assert "2 of 2 sessions lose all their lesions in preparation" in notes
    summary = summarise(cohort, find_sessions(site), elements=elements, tasks=("T1w->lesion",))
    with pytest.raises(
        BadSite, match=r"no session has lesion.*\(2 of 2 sessions lose all their lesions"
    ):
        check_elements(summary, elements, ("T1w->lesion",))


def test_a_patient_without_a_lesion_keeps_the_empty_mask(
    site: Path, save_volume: SaveVolume, head: np.ndarray
):
    save_volume(site / "sub-01_lesionmask.nii", np.zeros_like(head))
    cohort, notes = notes_of(site, ELEMENTS)
    assert all("lesion" in session.masks for session in cohort)
    assert "lose all" not in notes


def test_a_cached_session_tells_the_same_as_a_new_one(site: Path):
    (_, first), (again, second) = (notes_of(site, replace(ELEMENTS, size=(16, 10))) for _ in "12")
    assert first == second
    assert all(session.heights for session in again)


def test_unlike_and_soft_masks_are_told(site: Path, save_volume: SaveVolume, head: np.ndarray):
    save_volume(site / "sub-01_lesionmask.nii", (head > 90) * np.uint8(2))
    save_volume(site / "sub-02_brainmask.nii", ((head > 0) * 0.9 + (head > 60) * 0.1))
    _, notes = notes_of(site, ELEMENTS)
    assert "masks of lesions mark with different values, from 1.0 to 2.0" in notes
    assert "1 of 2 masks of the brain hold probabilities" in notes


@pytest.mark.parametrize("kind", ["z-score", "wrapped", "CT"])
def test_values_far_below_0_are_told_apart_without_a_mask_too(
    tmp_path: Path, save_volume: SaveVolume, head: np.ndarray, kind: str
):
    voxels = {
        "z-score": (head - head.mean()) / head.std(),
        "wrapped": (head * 400).astype(np.int32).astype(np.int16).astype(np.float32),
        "CT": np.where(head > 0, 35 + head / 60, -1000),
    }[kind]
    path = save_volume(tmp_path / "sub-01_T1w.nii", voxels.astype(np.float32))
    with pytest.raises(BadImage) as caught:
        prepare_session(find_sessions(tmp_path)[0], ELEMENTS)
    assert str(caught.value).startswith(f"{path}: ")
    assert "voxels are far below 0" in str(caught.value)
    assert "elements.intensity" in str(caught.value)


def test_small_values_below_0_of_a_resampling_do_no_harm(
    tmp_path: Path, save_volume: SaveVolume, head: np.ndarray
):
    save_volume(tmp_path / "sub-01_T1w.nii", np.where(head > 0, head, -2))
    prepare_session(find_sessions(tmp_path)[0], ELEMENTS)


def test_a_window_maps_its_ends_to_0_and_1(
    tmp_path: Path, save_volume: SaveVolume, head: np.ndarray
):
    """nipy/nibabel#890: windowing is what CT needs."""
    voxels = np.where(head > 0, 40.0, -1000.0)
    voxels[5, 5], voxels[5, 6], voxels[5, 7] = 1500, -10, 20
    save_volume(tmp_path / "sub-01_CT.nii", voxels.astype(np.float32))
    session = prepare_session(find_sessions(tmp_path)[0], CT)
    found = set(np.round(np.unique(session.images), 5).tolist())
    assert found == {0.0, 0.25, 0.5, 1.0}


def test_csf_below_the_window_drops_no_slice(
    tmp_path: Path, save_volume: SaveVolume, head: np.ndarray
):
    voxels = np.where(head > 0, np.where(head > 70, 40.0, -5.0), -1000.0)
    save_volume(tmp_path / "sub-01_CT.nii", voxels.astype(np.float32))
    save_volume(tmp_path / "sub-01_brainmask.nii", (head > 0).astype(np.uint8))
    assert prepare_session(find_sessions(tmp_path)[0], CT).num_slices == 4


@pytest.mark.parametrize(("low", "high"), [(0, 1), (2000, 3000), (-2000, -900)])
def test_values_in_another_unit_than_the_window_are_refused(
    tmp_path: Path, save_volume: SaveVolume, head: np.ndarray, low: float, high: float
):
    """MIC-DKFZ/mood#2: values from 0 to 1 where Hounsfield units were thought of."""
    voxels = low + (high - low) * head / head.max()
    save_volume(tmp_path / "sub-01_CT.nii", voxels.astype(np.float32))
    with pytest.raises(BadImage, match=r"almost nothing of its values.*are they in its unit"):
        prepare_session(find_sessions(tmp_path)[0], CT)
