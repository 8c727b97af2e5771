"""The rendered head: what its fractions add up to, where its lesions lie, and what moves them."""

from collections.abc import Callable

import numpy as np
import pytest

from grandrounds.data.simulation.anatomy import (
    BRAIN,
    CSF,
    HEAD,
    LESION,
    WHITE,
    PatientTraits,
    centred,
    deformed,
    draw_affine,
    draw_traits,
    elastic,
    lesion_share,
    load_template,
    patient_tissues,
    tissue_fractions,
)
from grandrounds.data.simulation.fields import Array
from grandrounds.data.simulation.signal import TISSUES

PLANES = np.array([-10.0, 12.0])


def streams_of(patient: int) -> Callable[[str], np.random.Generator]:
    return lambda purpose: np.random.default_rng([patient, *purpose.encode()])


def render(patient: int, size: int = 64) -> Array:
    return tissue_fractions(streams_of(patient), PLANES, (size, size), (224 / size, 224 / size))


def test_every_tissue_of_the_head_has_its_signal() -> None:
    assert set(HEAD) == set(TISSUES)


def test_fractions_are_shares_and_air_is_the_rest() -> None:
    tissues = render(1)
    assert tissues.shape == (2, len(HEAD), 64, 64)
    assert tissues.min() >= 0
    assert tissues.sum(axis=1).max() <= 1 + 1e-6
    assert tissues[:, :, 0].max() < 0.01


def test_a_brain_is_as_large_as_brains_are() -> None:
    areas = [render(patient)[:, BRAIN].sum(axis=(1, 2, 3)) * 3.5**2 for patient in range(4)]
    assert 150e2 < np.min(areas) < np.max(areas) < 260e2  # mm²


def test_a_patient_has_the_same_anatomy_at_any_size() -> None:
    fine = render(2, 128).reshape(2, len(HEAD), 64, 2, 64, 2).mean(axis=(3, 5))
    coarse = render(2, 64)
    for tissue in BRAIN[:3]:
        assert np.corrcoef(fine[:, tissue].ravel(), coarse[:, tissue].ravel())[0, 1] > 0.98


def test_patients_differ() -> None:
    one, other = render(1)[:, WHITE], render(2)[:, WHITE]
    assert np.corrcoef(one.ravel(), other.ravel())[0, 1] < 0.8


def test_pictures_start_at_the_front_and_at_the_patients_right() -> None:
    line = centred(16, 10.0)
    up, forward, right = deformed(np.random.default_rng(3), (PLANES, line, line))
    assert (up[1] > up[0]).all()
    assert (np.diff(forward, axis=1) < 0).all()
    assert (np.diff(right, axis=2) < 0).all()


def test_deformations_are_as_large_as_stated() -> None:
    line, displacement, turned = centred(8, 20.0), [], []
    for patient in range(60):
        rng = np.random.default_rng(patient)
        turned.append(draw_affine(rng) - np.eye(3))
        displacement.append(elastic(rng, (PLANES, line, line)))
    assert np.std(displacement) == pytest.approx(np.hypot(3.5, 1.3), rel=0.05)
    diagonal = np.stack([matrix.diagonal() for matrix in turned])
    assert diagonal.std() == pytest.approx(np.hypot(0.045, 0.02), rel=0.2)
    in_plane = np.array([matrix[1, 2] for matrix in turned])
    assert np.degrees(in_plane.std()) == pytest.approx(4, rel=0.25)


def test_voxel_centres_give_the_stored_bytes() -> None:
    template = load_template()
    index = np.array([20, 60, 45])
    place = (index * template.spacing + template.origin).astype(np.float32)[:, None]
    stored = template.voxels[tuple(index)].reshape(1).view(np.uint8)
    np.testing.assert_allclose(template.at(place)[:, 0] * 255, stored, atol=1e-3)


def lesions_of(patient: int) -> Array:
    return draw_traits(streams_of(patient)).lesions


def test_patients_have_up_to_eight_lesions_of_the_stated_sizes() -> None:
    drawn = [lesions_of(patient) for patient in range(200)]
    assert {len(lesions) for lesions in drawn} == set(range(9))
    radii = np.concatenate(drawn)[:, 3]
    assert 1.2 <= radii.min() < 1.3
    assert 3.7 < radii.max() <= 3.8


def test_lesions_are_centred_in_white_matter() -> None:
    centres = np.concatenate([lesions_of(patient) for patient in range(50)])[:, :3]
    assert load_template().at(np.ascontiguousarray(centres.T))[WHITE].min() > 0.9


def test_a_lesion_is_a_ball_of_its_radius() -> None:
    lesions = np.array([[80, 100, 90, 3]], np.float32)
    places = np.array([[80, 80, 80, 83, 80], [100, 102, 100, 100, 104], [90] * 5], np.float32)
    np.testing.assert_allclose(lesion_share(lesions, places), [1, 1, 1, 0.5, 0])


def test_lesions_take_from_white_matter_alone() -> None:
    centre = load_template().lesion_sites[100]
    places = (centre[:, None] + np.linspace(-8, 8, 33)).astype(np.float32)
    factor = np.ones(33, np.float32)
    lesion = np.array([[*centre, 3]], np.float32)
    healthy = patient_tissues(PatientTraits(1, 1, lesion[:0]), places, factor, factor)
    ill = patient_tissues(PatientTraits(1, 1, lesion), places, factor, factor)
    assert ill[LESION].max() > 0.9
    np.testing.assert_allclose(ill[WHITE] + ill[LESION], healthy[WHITE], atol=1e-6)
    others = [index for index in range(len(HEAD)) if index not in (WHITE, LESION)]
    np.testing.assert_array_equal(ill[others], healthy[others])


@pytest.mark.parametrize(("narrow", "wide"), [(0.5, 1.0), (1.0, 2.0)])
def test_wider_csf_spaces_hold_more_csf(narrow: float, wide: float) -> None:
    places = np.stack([np.full(100, 86), np.full(100, 117), np.linspace(20, 176, 100)])
    factor, none = np.ones(100, np.float32), np.zeros((0, 4), np.float32)
    held = [
        patient_tissues(PatientTraits(csf, 1, none), places.astype(np.float32), factor, factor)[
            CSF
        ].sum()
        for csf in (narrow, wide)
    ]
    assert held[1] > 1.1 * held[0]
