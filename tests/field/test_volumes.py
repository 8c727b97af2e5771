"""Headers, names, masks and grey values as people's files have them."""

from collections.abc import Callable

import numpy as np
import pytest

from grandrounds.data.cohort import Session
from tests.field.conftest import Verdict, same

Judge = Callable[..., Verdict]
Intact = dict[str, Session]
KEPT_TYPES = (*("i1", "u2", ">i2", ">f4", "i4", "u4", "f8", "i8"), *("4d", "5d", "nifti2"))


def test_transforms_that_contradict_each_other_about_left_and_right_are_refused(judged: Judge):
    sentence = judged("01").refused
    assert "sub-01_T1w.nii.gz" in sentence
    assert "sform" in sentence
    assert "qform" in sentence
    assert "left" in sentence


def test_a_void_sform_gives_way_to_the_qform(judged: Judge, intact: Intact):
    unset, void = judged("02", "a"), judged("02", "b")
    assert same(unset.sessions, intact)
    assert same(void.sessions, intact)
    assert not [note for note in unset.notes if "sform" in note]
    assert [note for note in void.notes if note.startswith("8 of 8 volumes have an sform")]


@pytest.mark.parametrize(
    ("folder", "size"),
    [("a", "6 x 6 x 0"), ("a2", "0 x 6 x 6"), ("b", "-6 x 6 x 6"), ("d", "nan x 6 x 6")],
)
def test_a_voxel_size_that_is_no_length_is_refused(judged: Judge, folder: str, size: str):
    sentence = judged("04", folder).refused
    assert "sub-01_T1w.nii.gz" in sentence
    assert size in sentence


def test_a_handedness_of_0_is_read_as_1(judged: Judge, intact: Intact):
    assert same(judged("04", "c").sessions, intact)


def test_a_slope_that_is_none_leaves_the_stored_values(judged: Judge):
    zero, nan, seven = (judged("05", folder) for folder in ("zero", "nan", "zero-inter-7"))
    assert len(zero.sessions) == 4
    assert same(zero.sessions, nan.sessions)
    assert same(zero.sessions, seven.sessions)
    assert all(session.masks["brain"].any() for session in zero.sessions.values())


def test_an_infinite_offset_is_refused(judged: Judge):
    assert "sub-01_T1w.nii.gz: cannot be read" in judged("05", "inter-inf").refused


@pytest.mark.parametrize("kind", KEPT_TYPES)
def test_every_type_of_the_same_numbers_gives_the_same_slices(judged: Judge, kind: str):
    found, expected = judged("06", kind).sessions, judged("06", "u1").sessions
    assert same(found, expected)


@pytest.mark.parametrize("kind", ["rgb", "complex"])
def test_colours_and_complex_numbers_are_refused(judged: Judge, kind: str):
    assert "sub-01_T1w.nii.gz: holds no grey values" in judged("06", kind).refused


@pytest.mark.parametrize("folder", ["a", "b", "d", "e"])
def test_a_brain_with_many_values_below_0_is_refused_with_their_number(judged: Judge, folder: str):
    sentence = judged("07", folder).refused
    assert "of 2800 voxels in the brain are below 0" in sentence
    assert "elements.intensity" in sentence
    assert "part of the body" not in sentence


def test_a_few_small_values_below_0_do_no_harm(judged: Judge):
    assert len(judged("07", "c").sessions) == 4


@pytest.mark.parametrize("folder", ["255", "float", "slope"])
def test_one_value_beside_0_means_inside_whatever_it_is(judged: Judge, folder: str):
    found, plain = judged("08", folder).sessions, judged("07", "c").sessions
    for label, session in found.items():
        assert np.array_equal(session.masks["brain"], plain[label].masks["brain"])


def test_probabilities_that_never_pass_one_half_are_no_mask(judged: Judge):
    sentence = judged("08", "soft").refused
    assert "lesionmask" in sentence
    assert "none with more than 0.4" in sentence


def test_labels_below_0_and_grey_values_are_no_mask(judged: Judge):
    assert "sub-01_lesionmask.nii.gz: has values below 0" in judged("08", "minus").refused
    assert "379 values" in judged("08", "grey").refused


def test_several_labels_in_a_mask_are_told(judged: Judge):
    notes = judged("08", "labels").notes
    assert [note for note in notes if note.startswith("4 of 4 masks of lesions have several")]
    assert not [note for note in judged("08", "255").notes if "label" in note]


@pytest.mark.parametrize(
    ("folder", "name"),
    [
        ("a", "sub-01_T1wmask.nii.gz"),
        ("b", "sub-01_Brainmask.nii.gz"),
        ("c", "sub-01_lesionMask.nii.gz"),
        ("d", "sub-01_desc-brain_mask.nii.gz"),
        ("e", "sub-01_T2wmask.nii.gz"),
    ],
)
def test_a_mask_by_another_name_is_refused_by_it(judged: Judge, folder: str, name: str):
    assert f"{name}, " in judged("09", folder).refused


def test_what_macos_and_windows_leave_in_a_folder_is_no_volume(judged: Judge):
    assert len(judged("10").sessions) == 4


def test_a_link_into_an_annex_is_the_file_and_a_dangling_one_is_named(
    judged: Judge, intact: Intact
):
    assert same(judged("11", "alive").sessions, intact)
    assert "sub-01_T1w.nii.gz: No such file" in judged("11", "link").refused
    assert "sub-01_T1w.nii.gz: cannot be read (it is a pointer" in judged("11", "pointer").refused


@pytest.mark.parametrize(
    ("folder", "name"),
    [
        ("acq", "sub-01_acq-mprage_T1w.nii.gz"),
        ("run", "sub-01_run-1_T1w.nii.gz"),
        ("ce", "sub-01_ce-gadolinium_T1w.nii.gz"),
        ("dot", "sub-01.2_T1w.nii.gz"),
        ("upper", "sub-01_T1w.NII.GZ"),
    ],
)
def test_a_name_outside_of_the_rule_is_refused_by_it(judged: Judge, folder: str, name: str):
    assert f"{name} must be named sub-ID" in judged("12", folder).refused


@pytest.mark.parametrize("folder", ["nested", "both"])
def test_volumes_in_folders_below_are_not_left_out(judged: Judge, folder: str):
    sentence = judged("12", folder).refused
    assert "/anat/sub-0" in sentence
    assert "must be flat" in sentence


def test_pixels_that_are_no_rectangles_are_refused(judged: Judge):
    sentence = judged("13", "a").refused
    assert "sub-01_T1w.nii.gz" in sentence
    assert "75 degrees" in sentence
    assert len(judged("13", "b").sessions) == 4, "a tilt between slices leaves each one right"


def test_compression_is_read_as_it_is_and_not_as_the_name_says(judged: Judge, intact: Intact):
    for folder in "ae":
        assert same(judged("14", folder).sessions, intact)
    reasons = {"b": "cannot be read (", "c": "is not compressed", "d": "is compressed"}
    for folder, reason in reasons.items():
        sentence = judged("14", folder).refused
        assert "sub-01_T1w.nii" in sentence
        assert reason in sentence


def test_what_a_coarse_grid_makes_of_small_lesions_is_said_in_mm3(judged: Judge):
    verdict = judged("16")
    [note] = [note for note in verdict.notes if note.startswith("lesions: ")]
    kept = sum(36.0 * 6 * s.masks["lesion"].sum() for s in verdict.sessions.values())
    assert f"{round(kept)} mm3 after preparation" in note
    assert all(
        (session.extents["lesion"].kept > 0) == bool(session.masks["lesion"].any())
        for session in verdict.sessions.values()
    )


def test_the_same_head_is_the_same_however_it_is_stored(judged: Judge):
    first, *others = judged("17").sessions.values()
    assert len(others) == 3
    for other in others:
        assert np.array_equal(other.images, first.images)
        assert np.array_equal(other.masks["lesion"], first.masks["lesion"])
    columns = np.flatnonzero(first.masks["lesion"].any(axis=(0, 1)))
    assert columns.min() >= 16, "the lesion lies in the patient's left"
