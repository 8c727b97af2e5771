"""Simulated sessions and cohorts: what they repeat, what they share, and how sites differ."""

import hashlib
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray

from grandrounds.core.errors import BadStudy
from grandrounds.data.cohort import Session
from grandrounds.data.elements import Elements
from grandrounds.data.simulation.anatomy import HEAD
from grandrounds.data.simulation.signal import Sequence
from grandrounds.data.simulation.simulate import (
    JITTER,
    Patients,
    Scanner,
    bias_shape,
    draw_properties,
    patient_labels,
    simulate_session,
    tissue_masks,
)

CONTRASTS = ("T1w", "T2w", "PDw", "FLAIR")
ELEMENTS = Elements(CONTRASTS, (48, 40), (5.0, 5.0))
CLEAN = Scanner(snr=1e6, bias=0.0, blur=0.0)
OTHER = Scanner(
    field=3.0,
    snr=45.0,
    bias=0.35,
    blur=0.35,
    protocol={
        "T1w": Sequence("mprage", 2000, 3, ti=900),
        "T2w": Sequence("spin-echo", 6000, 100),
        "PDw": Sequence("spin-echo", 4000, 12),
        "FLAIR": Sequence("inversion-recovery", 9500, 120, ti=2550),
    },
)


def session(
    scanner: Scanner = OTHER,
    patient: str = "sub-001",
    site: str = "birch",
    seed: int = 7,
    slices: int = 3,
    elements: Elements = ELEMENTS,
) -> Session:
    return simulate_session(seed, site, patient, scanner, elements, slices=slices)


def digest(found: Session) -> str:
    return hashlib.sha256(found.images.tobytes() + found.masks["lesion"].tobytes()).hexdigest()


def test_a_session_has_the_common_data_elements() -> None:
    found = session()
    assert found.label == "sub-001"
    assert found.contrasts == CONTRASTS
    assert found.images.shape == (3, 4, 48, 40)
    assert found.images.dtype == np.float32
    assert found.images.min() >= 0
    assert found.images.max() <= 1
    for mask in found.masks.values():
        assert mask.shape == (3, 48, 40)
        assert mask.dtype == np.uint8


def test_the_99th_percentile_of_the_brain_is_one_over_one_point_two() -> None:
    found = session()
    brain = found.masks["brain"] > 0
    tops = [np.percentile(found.images[:, k][brain], 99) for k in range(len(CONTRASTS))]
    assert tops == pytest.approx([1 / 1.2] * 4, abs=1e-6)


def test_images_are_what_they_were_when_this_was_written() -> None:
    means = session().images.mean(axis=(0, 2, 3), dtype=np.float64)
    assert means == pytest.approx([0.32038, 0.14120, 0.28807, 0.23993], abs=1e-4)


@pytest.mark.slow
def test_a_fresh_process_gives_the_same_bits() -> None:
    code = (
        "import hashlib; from grandrounds.data.elements import Elements;"
        "from grandrounds.data.simulation.simulate import Scanner, simulate_session;"
        "elements = Elements(('T1w',), (48, 40), (5.0, 5.0));"
        "found = simulate_session(7, 'birch', 'sub-001', Scanner(), elements, slices=3);"
        "bits = found.images.tobytes() + found.masks['lesion'].tobytes();"
        "print(hashlib.sha256(bits).hexdigest())"
    )
    there = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout.strip()
    assert there == digest(session(Scanner(), elements=replace(ELEMENTS, contrasts=("T1w",))))


def test_a_contrast_does_not_depend_on_which_others_are_asked_for() -> None:
    alone = session(elements=replace(ELEMENTS, contrasts=("T2w",)))
    np.testing.assert_array_equal(alone.images[:, 0], session().images[:, 1])


@pytest.mark.parametrize(
    ("seed", "site", "patient"),
    [(8, "birch", "sub-001"), (7, "cedar", "sub-001"), (7, "birch", "sub-002")],
)
def test_another_seed_site_or_patient_is_another_head(seed: int, site: str, patient: str) -> None:
    one, other = session(CLEAN), session(CLEAN, seed=seed, site=site, patient=patient)
    assert (one.masks["brain"] != other.masks["brain"]).mean() > 0.01


def test_scanners_differ_where_the_patient_is_the_same() -> None:
    one, two = session(Scanner()), session(OTHER)
    np.testing.assert_array_equal(one.masks["brain"], two.masks["brain"])
    brain = one.masks["brain"] > 0
    assert np.abs(one.images[:, 0][brain] - two.images[:, 0][brain]).mean() > 0.1


def test_contrasts_order_the_tissues_as_radiologists_know_them() -> None:
    found = session(replace(OTHER, bias=0.0), slices=9)
    brain = found.masks["brain"] > 0
    t1w, t2w, _, flair = (found.images[:, k][brain] for k in range(4))
    fluid = t2w > 0.7
    assert fluid.mean() > 0.01
    assert np.median(t1w[fluid]) < 0.3 < np.median(t1w)
    assert np.median(flair[fluid]) < 0.3 < np.median(flair)


def test_contrasts_share_one_bias_field() -> None:
    shaded, even = session(replace(CLEAN, bias=0.5)), session(CLEAN)
    seen = (shaded.masks["brain"] > 0)[:, None] & (shaded.images < 1) & (even.images < 1)
    seen = (seen & (even.images > 0.02)).all(axis=1)
    fields = [(shaded.images / even.images)[:, k][seen] for k in range(len(CONTRASTS))]
    relative = np.stack([field / field.mean() for field in fields])
    assert relative[0].std() > 0.05
    np.testing.assert_allclose(relative[1:], relative[:1].repeat(3, axis=0), rtol=1e-3)


def test_bias_is_at_most_as_large_as_stated() -> None:
    line = np.linspace(-80, 80, 41)
    shapes = [
        bias_shape(np.random.default_rng(seed), (np.array([-20.0, 20.0]), line, line))
        for seed in range(20)
    ]
    largest = np.abs(shapes).max(axis=(1, 2, 3))
    assert largest.max() <= 1.05
    assert largest.min() > 0.5


def test_noise_follows_the_signal_to_noise_ratio() -> None:
    clean, noisy = session(CLEAN), session(replace(CLEAN, snr=20.0))
    brain = clean.masks["brain"] > 0
    pdw = CONTRASTS.index("PDw")
    one, two = (found.images[:, pdw][brain] for found in (clean, noisy))
    scaled = two * (one.mean() / two.mean())
    inside = (one < 1) & (two < 1)
    assert (scaled - one)[inside].std() == pytest.approx(one.mean() / 20, rel=0.1)


def test_air_is_dark_and_full_of_noise() -> None:
    corner = session(replace(OTHER, snr=10.0)).images[:, :, :3, :3]
    assert 0 < corner.mean() < 0.2
    assert corner.std() > 0


def test_tissue_properties_vary_by_patient_as_stated() -> None:
    draws = [draw_properties(np.random.default_rng(seed), 1.5) for seed in range(400)]
    white = np.array([(p[2].density / 0.68, p[2].t1 / 650, p[2].t2 / 75) for p in draws])
    assert white.mean(axis=0) == pytest.approx(np.ones(3), abs=0.01)
    assert white.std(axis=0) == pytest.approx(JITTER, rel=0.15)


def lesion_pixels(found: Session) -> NDArray[np.bool_]:
    return found.masks["lesion"] > 0


@pytest.mark.slow
def test_lesions_lie_in_the_brain_and_shine_in_flair() -> None:
    fine = Elements(("FLAIR",), (112, 96), (2.0, 2.0))
    found = [session(CLEAN, f"sub-{k:03d}", slices=6, elements=fine) for k in range(1, 5)]
    assert sum(lesion_pixels(s).sum() for s in found) > 20
    for s in found:
        assert (s.masks["brain"][lesion_pixels(s)] == 1).all()
    brightest = np.concatenate([s.images[:, 0][lesion_pixels(s)] for s in found])
    others = np.concatenate([s.images[:, 0][s.masks["brain"] > 0] for s in found])
    assert np.median(brightest) > np.percentile(others, 95)


def test_one_slice_shows_the_middle_of_the_head() -> None:
    one, three = session(CLEAN, slices=1), session(CLEAN, slices=97)
    brains = three.masks["brain"].astype(int)
    distance = np.abs(brains - one.masks["brain"][0].astype(int)).sum(axis=(1, 2))
    assert abs(int(distance.argmin()) - 48) <= 6  # the slab's shift is 2.5 mm at most


def test_patients_are_numbered_through_the_splits() -> None:
    assert patient_labels(Patients(2, 1, 2)) == {
        "train": ("sub-001", "sub-002"),
        "validation": ("sub-003",),
        "test": ("sub-004", "sub-005"),
    }


def test_a_contrast_that_the_protocol_lacks_is_refused_by_a_sentence() -> None:
    scanner = Scanner(protocol={"T1w": Sequence("spin-echo", 500, 12)})
    with pytest.raises(BadStudy) as refused:
        session(scanner)
    assert str(refused.value) == (
        "site 'birch': scanner.protocol has no sequence for contrast 'T2w' (it has T1w); "
        "it must have one for each of the study's contrasts."
    )


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"field": 7.0}, "has field = 7; the tissue table holds from 1.5 to 3 tesla."),
        ({"snr": 0.0}, "has snr = 0; it must be above 0."),
        ({"bias": -0.1}, "has bias = -0.1; it must be 0 or more."),
        ({"blur": -1.0}, "has blur = -1; it must be 0 or more."),
    ],
)
def test_a_scanner_that_cannot_be_is_refused(settings: dict[str, float], sentence: str) -> None:
    with pytest.raises(BadStudy) as refused:
        replace(Scanner(), **settings)
    assert str(refused.value) == f"a scanner {sentence}"


def test_each_pixel_of_the_brain_is_of_at_most_one_tissue() -> None:
    found = session(slices=6)
    tissues = np.stack([found.masks[name] for name in ("csf", "grey", "white")])
    assert tissues.sum(axis=0).max() == 1
    brain = found.masks["brain"] > 0
    assert tissues[:, brain].sum() > 0.95 * brain.sum()
    assert (tissues.sum(axis=0)[~brain]).mean() < 0.1


def test_tissues_have_the_brightness_of_their_contrast() -> None:
    """Spin-echo T1w: white over grey over fluid; FLAIR: fluid is dark."""
    found = session(CLEAN, slices=6)
    for contrast, order in {"T1w": ("csf", "grey", "white"), "FLAIR": ("csf", "white")}.items():
        images = found.images[:, CONTRASTS.index(contrast)]
        means = [float(np.median(images[found.masks[name] > 0])) for name in order]
        assert means == sorted(means)


def test_the_largest_share_names_the_tissue_and_grey_is_the_cortex_and_the_deep_one() -> None:
    shares = np.zeros((1, len(HEAD), 1, 4), np.float32)
    for column, mixture in enumerate(
        (
            {"grey": 0.3, "deep grey": 0.3, "white": 0.4},
            {"white": 0.4, "csf": 0.3},
            {"csf": 0.3, "grey": 0.2},  # the rest, half of it, is air
            {"csf": 0.4, "lesion": 0.6},
        )
    ):
        for tissue, share in mixture.items():
            shares[0, HEAD.index(tissue), 0, column] = share
    masks = {name: mask[0, 0].tolist() for name, mask in tissue_masks(shares).items()}
    assert masks == {
        "csf": [False, False, False, False],
        "grey": [True, False, False, False],
        "white": [False, True, False, False],
    }
