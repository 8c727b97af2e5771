import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from grandrounds.core.errors import BadSite
from grandrounds.data.availability import (
    Count,
    Geometry,
    SiteSummary,
    check_elements,
    needs,
    serves,
    summarise,
    summarise_simulated,
)
from grandrounds.data.cohort import Cohort, Session
from grandrounds.data.elements import Elements
from grandrounds.data.prepare import prepare_cohort
from grandrounds.data.session_files import find_sessions

SaveVolume = Callable[..., Path]
ELEMENTS = Elements(("T1w", "T2w"), size=(4, 6), spacing=(1.5, 2.0))
TASKS = ("T1w->T2w", "T1w->lesion")


def scan(patient: str, contrasts: str, *, slices: int = 2, masks: str = "brain") -> Session:
    names = tuple(contrasts.split())
    images = np.zeros((slices, len(names), 4, 6), dtype=np.float32)
    mask = np.zeros((slices, 4, 6), dtype=np.uint8)
    return Session(patient, "", names, images, dict.fromkeys(masks.split(), mask))


def summary_of(train: list[Session], test: list[Session], tasks: tuple[str, ...]) -> SiteSummary:
    cohort = Cohort("alder", {"train": tuple(train), "validation": (), "test": tuple(test)})
    return summarise_simulated(cohort, elements=ELEMENTS, tasks=tasks)


def refusal(train: list[Session], test: list[Session], *tasks: str) -> str:
    with pytest.raises(BadSite) as caught:
        check_elements(summary_of(train, test, tasks), ELEMENTS, tasks)
    return str(caught.value)


def test_a_task_needs_what_its_label_says():
    assert needs("T1w->lesion") == ("T1w", "lesion")
    assert serves(scan("a", "T1w", masks="lesion"), "T1w->lesion")
    assert not serves(scan("a", "T1w"), "T1w->lesion")
    assert not serves(scan("a", "T1w"), "T1w->T2w")


def test_counts_are_exact_per_split_content_and_task():
    train = [scan("a", "T1w T2w"), scan("a", "T1w", slices=3), scan("b", "T1w T2w", slices=5)]
    test = [scan("c", "T2w T1w", slices=7, masks="brain lesion")]
    summary = summary_of(train, test, TASKS)
    assert summary.splits == {
        "train": Count(patients=2, sessions=3, slices=10),
        "validation": Count(0, 0, 0),
        "test": Count(1, 1, 7),
    }
    assert summary.contents == {
        "T1w": Count(3, 4, 17),
        "T2w": Count(3, 3, 14),
        "lesion": Count(1, 1, 7),
    }
    assert summary.tasks["T1w->T2w"] == {
        "train": Count(2, 2, 7),
        "validation": Count(0, 0, 0),
        "test": Count(1, 1, 7),
    }
    assert summary.tasks["T1w->lesion"]["train"] == Count(0, 0, 0)


def test_a_simulated_site_has_the_studys_spacing_and_size():
    summary = summary_of([scan("a", "T1w T2w")], [scan("b", "T1w T2w")], ("T1w->T2w",))
    assert summary.simulated
    assert summary.geometry == Geometry(
        spacing=((1.5, 1.5), (2.0, 2.0)), size=((4, 4), (6, 6)), thickness=None
    )


def test_notes_say_what_is_missing_and_what_it_costs():
    train = [scan("a", "T1w", slices=28), scan("b", "T2w", masks=""), scan("b", "T2w", slices=4)]
    summary = summary_of(train, [scan("c", "T1w T2w")], ("T1w->T2w",))
    assert tuple(map(str, summary.notes)) == (
        "2 of 4 sessions lack T1w: 6 slices cannot serve T1w->T2w",
        "1 of 4 sessions lacks T2w: 28 slices cannot serve T1w->T2w",
        "1 of 4 sessions lacks a brain mask: scaled by the whole head",
        "no patient is left for validation",
    )


def test_a_contrast_that_no_task_needs_costs_nothing():
    summary = summary_of([scan("a", "T1w")], [scan("b", "T1w")], ())
    assert str(summary.notes[0]) == "2 of 2 sessions lack T2w: no task here needs it"


def test_a_site_that_can_train_and_test_its_tasks_is_accepted():
    summary = summary_of([scan("a", "T1w T2w")], [scan("b", "T1w T2w")], ("T1w->T2w",))
    check_elements(summary, ELEMENTS, ("T1w->T2w",))


def test_a_contrast_that_no_session_has_is_refused():
    assert refusal([scan("a", "T1w")], [scan("b", "T1w")], "T1w->T2w") == (
        "site 'alder': no session has T2w, which T1w->T2w needs; "
        "add such files or take the task from this site."
    )


def test_a_task_without_any_case_is_refused():
    assert refusal([scan("a", "T1w")], [scan("b", "T2w")], "T1w->T2w") == (
        "site 'alder': T1w->T2w has no case; a session must have all that it needs, "
        "and the sessions here have T1w (1), T2w (1)."
    )


@pytest.mark.parametrize(("empty", "counts"), [("train", "0 train"), ("test", "6 train")])
def test_a_task_without_a_case_to_train_or_test_is_refused(empty: str, counts: str):
    full, lacking = [scan("a", "T1w T2w", slices=6)], [scan("b", "T1w")]
    train, test = (full, lacking) if empty == "test" else (lacking, full)
    tested = 0 if empty == "test" else 6
    assert refusal(train, test, "T1w->T2w") == (
        f"site 'alder': T1w->T2w has no {empty} case "
        f"({counts}, 0 validation, {tested} test slices); "
        "more patients need T1w and T2w in one session, or the study another elements.split.salt, "
        "which deals all patients anew."
    )


def test_a_folder_is_described_with_what_was_left_out(
    tmp_path: Path, save_volume: SaveVolume, head: np.ndarray
):
    thick, fine = np.diag([1.5, 1.5, 4.0, 1.0]), np.diag([0.5, 1.0, 3.0, 1.0])
    save_volume(tmp_path / "site" / "sub-1_T1w.nii", head, thick)
    save_volume(tmp_path / "site" / "sub-1_T2w.nii", head, thick)
    save_volume(tmp_path / "site" / "sub-2_T1w.nii", head, fine)
    save_volume(tmp_path / "site" / "sub-2_PDw.nii", head, fine)
    save_volume(tmp_path / "site" / "sub-3_PDw.nii", head)
    cohort = prepare_cohort("alder", tmp_path / "site", ELEMENTS, cache=tmp_path / "cache")
    files = find_sessions(tmp_path / "site")
    summary = summarise(cohort, files, elements=ELEMENTS, tasks=("T1w->T2w",))
    assert not summary.simulated
    assert summary.geometry == Geometry(
        spacing=((1.0, 1.5), (0.5, 1.5)), size=((14, 14), (12, 12)), thickness=(3.0, 4.0)
    )
    assert tuple(map(str, summary.notes[:3])) == (
        "2 volumes of contrasts outside of the study: left out",
        "1 of 3 sessions has no contrast of the study: left out",
        f"1 of 2 sessions lacks T2w: {cohort_slices(cohort, 'sub-2')} slices cannot serve T1w->T2w",
    )


def cohort_slices(cohort: Cohort, patient: str) -> int:
    return sum(session.num_slices for session in cohort if session.patient == patient)


@pytest.mark.slow
def test_a_summary_names_no_patient_session_or_path(real_data: Path, tmp_path: Path):
    folder, elements = (
        real_data / "mri" / "site-lju15t",
        Elements(("T1w", "T2w", "FLAIR"), (32, 32)),
    )
    cohort = prepare_cohort("alder", folder, elements, cache=tmp_path)
    summary = summarise(cohort, find_sessions(folder), elements=elements, tasks=("T1w->FLAIR",))
    assert not re.search(r"sub-|ses-|/|nii", repr(summary))
    assert summary.contents["T1w"].sessions == 6
    assert str(summary.notes[0]).startswith("1 of 7 sessions lacks T1w: ")
    assert sum(count.patients for count in summary.splits.values()) == 5
