"""Image stacks: a site's images and variables in one .npz file."""

from math import isnan, nan
from pathlib import Path

import numpy as np
import pytest

from grandrounds.core.errors import BadImage, BadSite
from grandrounds.data.availability import check_elements, summarise_arrays
from grandrounds.data.elements import Elements, Fractions
from grandrounds.data.stack import is_stack, stack_cohort

ELEMENTS = Elements(
    contrasts=("CXR",), size=(4, 6), split=Fractions(0.5, 0.25, 0.25), variables=("ill",)
)
NUMBERS = np.arange(8, dtype=np.uint8)
IMAGES = np.broadcast_to(NUMBERS[:, None, None] * 10, (8, 4, 6))


def saved(folder: Path, **arrays: np.ndarray) -> Path:
    path = folder / "images.npz"
    np.savez(path, **{"images": IMAGES, "ill": NUMBERS % 2, **arrays})  # pyright: ignore[reportArgumentType]
    return path


def test_an_image_is_a_patient_in_0_to_1_with_its_variable(tmp_path: Path):
    path = saved(tmp_path)
    cohort = stack_cohort("alder", path, ELEMENTS)
    assert is_stack(path)
    assert [len(cohort.splits[split]) for split in cohort.splits] == [4, 2, 2]
    found = {round(float(s.images[0, 0, 0, 0]) * 255): s.values["ill"] for s in cohort}
    assert found == {number * 10: number % 2 for number in range(8)}
    assert {(s.images.shape, s.images.dtype.name) for s in cohort} == {((1, 1, 4, 6), "float32")}


def test_the_images_of_a_patient_are_slices_of_one_session(tmp_path: Path):
    path = saved(tmp_path, patient=NUMBERS % 4, ill=NUMBERS % 2)
    cohort = stack_cohort("alder", path, ELEMENTS)
    slices = {s.patient: (s.images[:, 0, 0, 0] * 255).round().tolist() for s in cohort}
    assert slices == {str(n): [10 * n, 10 * (n + 4)] for n in range(4)}


def test_floating_images_and_a_channel_of_one_are_taken_as_they_are(tmp_path: Path):
    images = np.linspace(0, 1, 8 * 24).reshape(8, 1, 4, 6)
    cohort = stack_cohort("alder", saved(tmp_path, images=images), ELEMENTS)
    assert sum(float(s.images.sum()) for s in cohort) == pytest.approx(float(images.sum()))


def test_smaller_images_are_padded_about_their_middle(tmp_path: Path):
    images = np.full((8, 3, 4), 255, np.uint8)
    session = next(iter(stack_cohort("alder", saved(tmp_path, images=images), ELEMENTS)))
    expected = np.zeros((4, 6))
    expected[0:3, 1:5] = 1
    assert session.images[0, 0].tolist() == expected.tolist()


def test_a_missing_value_is_counted_and_its_case_left_out(tmp_path: Path):
    ill = (NUMBERS % 2).astype(float)
    ill[3] = nan
    cohort = stack_cohort("alder", saved(tmp_path, ill=ill), ELEMENTS)
    summary = summarise_arrays(cohort, elements=ELEMENTS, tasks=["CXR->ill"])
    assert sum(isnan(session.values["ill"]) for session in cohort) == 1
    assert summary.contents["ill"].patients == 7
    nameless, note = summary.notes
    assert "each counts as a patient of its own" in str(nameless)
    assert str(note) == "1 of 8 sessions lacks ill: 1 slice cannot serve CXR->ill"
    check_elements(summary, ELEMENTS, ["CXR->ill"])


@pytest.mark.parametrize(
    ("arrays", "says"),
    [
        ({"images": np.zeros((8, 5, 6), np.uint8)}, "5 x 6 pixels are larger than elements.size"),
        ({"images": np.zeros((8, 2, 4, 6), np.uint8)}, "'images' has shape (8, 2, 4, 6)"),
        ({"images": np.zeros((8, 4), np.uint8)}, "it must be (N, H, W) or (N, 1, H, W)"),
        ({"images": np.full((8, 4, 6), 2.0)}, "'images' is float64 from 2 to 2"),
        ({"images": np.full((8, 4, 6), nan)}, "uint8, or floating-point from 0 to 1"),
        ({"images": np.zeros((8, 4, 6), np.int16)}, "'images' is int16"),
        ({"ill": np.zeros(7)}, "'ill' has shape (7,)"),
        ({"ill": np.array(list("abcdefgh"))}, "each value must be a number, or nan where missing"),
        ({"ill": np.full(8, np.inf)}, "each value must be a number, or nan where missing"),
        ({"patient": np.zeros((8, 1))}, "'patient' has shape (8, 1)"),
        ({"patient": NUMBERS // 2}, "the images of one patient differ in 'ill' (0 and 1)"),
    ],
)
def test_what_is_no_stack_is_refused_in_a_sentence(
    tmp_path: Path, arrays: dict[str, np.ndarray], says: str
):
    with pytest.raises(BadImage) as refused:
        stack_cohort("alder", saved(tmp_path, **arrays), ELEMENTS)
    assert says in str(refused.value)


def test_a_variable_that_is_not_there_is_refused(tmp_path: Path):
    elements = Elements(contrasts=("CXR",), size=(4, 6), variables=("ill", "age"))
    with pytest.raises(BadImage, match="there is no array 'age'"):
        stack_cohort("alder", saved(tmp_path), elements)


@pytest.mark.parametrize("content", [b"", b"no zip", b"PK\x03\x04 cut off"])
def test_what_is_no_npz_file_is_refused(tmp_path: Path, content: bytes):
    path = tmp_path / "images.npz"
    path.write_bytes(content)
    with pytest.raises(BadImage, match="plain arrays"):
        stack_cohort("alder", path, ELEMENTS)


def test_images_need_a_contrast_in_the_study(tmp_path: Path):
    with pytest.raises(BadSite, match=r"elements\.contrasts must name what of"):
        stack_cohort("alder", saved(tmp_path), Elements(variables=("ill",)))
