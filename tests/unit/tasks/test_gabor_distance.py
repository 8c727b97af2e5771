"""The Gabor distance, and scores inside a mask, against values worked out by hand."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import TypeAlias

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.metrics.regression import compute_ssim_and_cs
from scipy import ndimage
from torch import Tensor

from grandrounds.tasks.metrics import ORIENTATIONS, WAVELENGTHS, WEAKEST, gabor, nrmse, psnr, ssim

Score: TypeAlias = Callable[..., Tensor]

SCORES = [psnr, ssim, nrmse]


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def grating(amplitude: float, wavelength: float, *, phase: float = 0.0) -> Tensor:
    """Stripes down the columns, 48 x 64 pixels, around 0.5."""
    wave = torch.cos(2 * math.pi * torch.arange(64) / wavelength + phase)
    return (0.5 + amplitude * wave).expand(1, 1, 48, 64).clone()


def blurred(image: Tensor, spread: float) -> Tensor:
    return torch.from_numpy(ndimage.gaussian_filter(image.numpy(), (0, 0, spread, spread)))


@pytest.fixture(scope="module")
def slice_of_t2(real_data: Path) -> Tensor:
    voxels = nib.load(real_data / "mri" / "site-lju3t" / "sub-07_T2w.nii.gz").get_fdata()  # pyright: ignore
    middle = voxels[:, :, voxels.shape[2] // 2] / np.quantile(voxels, 0.999)
    return torch.from_numpy(middle.clip(0, 1)).float()[None, None]


def test_equal_images_have_no_gabor_distance():
    images = noise(3, 1, 40, 48)
    assert gabor(images, images).tolist() == [0.0, 0.0, 0.0]


def answers(stripes: float, wavelength: float, *, turned: int = 0) -> list[float]:
    """How much of a grating's amplitude each filter gives; the filters are 30 degrees apart."""

    def answer(degrees: int) -> float:
        cosine = math.cos(math.radians(min(degrees % 180, -degrees % 180)))
        off = wavelength**2 / stripes**2 + 1 - 2 * wavelength / stripes * cosine
        return 0.5 * 2 ** (-9 * off)  # half as high at a third of the filter's own frequency

    return [answer(30 * n + turned) for n in range(ORIENTATIONS)]


def over(error: list[float], real: list[float]) -> float:
    root = math.sqrt(ORIENTATIONS)
    return math.hypot(*error) / root / max(math.hypot(*real) / root, WEAKEST)


@pytest.mark.parametrize("phase", [0.0, 1.0, math.pi])
@pytest.mark.parametrize("stripes", [4.0, 8.0, 16.0])
def test_a_weaker_grating_is_as_far_as_it_is_weaker_wherever_its_stripes_lie(
    stripes: float, phase: float
):
    """A quarter at wavelengths that answer to the stripes, next to nothing at the others."""
    bank = [answers(stripes, wavelength) for wavelength in WAVELENGTHS]
    expected = [over([0.1 * a for a in found], [0.4 * a for a in found]) for found in bank]
    assert max(expected) == pytest.approx(0.25)
    found = gabor(grating(0.3, stripes, phase=phase), grating(0.4, stripes))
    assert found.item() == pytest.approx(np.mean(expected), abs=1e-3)


def test_a_turned_grating_is_as_far_as_the_filters_tell_directions_apart():
    expected: list[float] = []
    for wavelength in WAVELENGTHS:
        across, along = (answers(8, wavelength, turned=degrees) for degrees in (90, 0))
        error = [0.4 * (a - b) for a, b in zip(across, along, strict=True)]
        expected.append(over(error, [0.4 * a for a in along]))
    target = grating(0.4, 8)[..., :48]
    assert gabor(target.mT, target).item() == pytest.approx(np.mean(expected), abs=2e-3)


def test_a_flat_prediction_is_at_distance_one():
    target = noise(2, 1, 32, 32)
    assert gabor(torch.full_like(target, 0.3), target).tolist() == pytest.approx([1.0, 1.0])


def test_structure_on_a_blank_target_is_measured_by_a_thousandth():
    blank = torch.full((1, 1, 48, 64), 0.5)
    expected = [over([0.1 * a for a in answers(8, length)], [0.0]) for length in WAVELENGTHS]
    assert gabor(grating(0.1, 8), blank).item() == pytest.approx(np.mean(expected), rel=1e-2)
    assert gabor(blank, blank).item() == 0.0


def test_the_distance_is_of_each_image_alone():
    predictions, targets = noise(2, 1, 32, 32), noise(2, 1, 32, 32, seed=1)
    alone = [gabor(predictions[i : i + 1], targets[i : i + 1]) for i in range(2)]
    torch.testing.assert_close(gabor(predictions, targets), torch.cat(alone))


def test_brightness_added_and_the_sign_of_a_contrast_do_not_count():
    target = noise(1, 1, 32, 32)
    assert gabor(target + 0.2, target).item() == pytest.approx(0, abs=1e-5)
    assert gabor(1 - target, target).item() == pytest.approx(0, abs=1e-5)


def test_both_images_may_be_made_brighter_by_a_factor():
    prediction, target = noise(1, 1, 32, 32), noise(1, 1, 32, 32, seed=1)
    torch.testing.assert_close(gabor(3 * prediction, 3 * target), gabor(prediction, target))


@pytest.mark.parametrize("size", [(32, 32), (33, 47), (8, 100)])
def test_any_size_will_do(size: tuple[int, int]):
    target = noise(1, 1, *size)
    assert 0 < gabor(blurred(target, 1.0), target).item() < 1


def test_the_distance_grows_with_blur_from_nothing_towards_one(slice_of_t2: Tensor):
    found = [gabor(blurred(slice_of_t2, s), slice_of_t2).item() for s in (0.5, 0.75, 1, 1.5, 2, 4)]
    assert found == sorted(found)
    assert 0.05 < found[0] < 0.15
    assert 0.7 < found[-1] < 1


def test_the_distance_grows_with_noise(slice_of_t2: Tensor):
    grain = noise(*slice_of_t2.shape) - 0.5
    found = [gabor(slice_of_t2 + s * grain, slice_of_t2).item() for s in (0.05, 0.1, 0.2, 0.4)]
    assert found == sorted(found)
    assert found[0] > 0.02


def test_it_prefers_a_sharp_image_a_pixel_off_to_a_blurred_one_where_psnr_does_not(
    slice_of_t2: Tensor,
):
    smooth, moved = blurred(slice_of_t2, 1.5), slice_of_t2.roll(1, -1)
    assert psnr(smooth, slice_of_t2) > psnr(moved, slice_of_t2) + 1
    assert gabor(smooth, slice_of_t2) > 2 * gabor(moved, slice_of_t2)


def halves() -> tuple[Tensor, Tensor, Tensor]:
    """Two flat images, 32 x 32: 0.1 too bright left of the middle, 0.2 right; the left half."""
    target = torch.full((1, 1, 32, 32), 0.5)
    prediction, left = target + 0.1, torch.zeros(1, 1, 32, 32, dtype=torch.bool)
    prediction[..., 16:] += 0.1
    left[..., :16] = True
    return prediction, target, left


def test_psnr_inside_a_mask_sees_no_error_outside():
    prediction, target, left = halves()
    assert psnr(prediction, target, left).item() == pytest.approx(20, abs=1e-4)
    assert psnr(prediction, target, ~left).item() == pytest.approx(20 * math.log10(5), abs=1e-4)


def test_nrmse_inside_a_mask_is_over_the_targets_root_mean_square_there():
    prediction, target, left = halves()
    target[..., 16:] = 0.25
    prediction[..., 16:] = 0.35
    assert nrmse(prediction, target, left).item() == pytest.approx(0.2, abs=1e-6)
    assert nrmse(prediction, target, ~left).item() == pytest.approx(0.4, abs=1e-6)


def test_ssim_inside_a_mask_is_the_mean_of_the_windows_with_their_middle_in_it():
    """Far from the step both sides are flat, and only the luminance term is not 1."""
    prediction, target, _ = halves()
    mask = torch.zeros_like(target, dtype=torch.bool)
    mask[..., 7] = True  # no window has its middle in the first and last 5 rows: 22 are left
    mask[..., :16, 24] = True  # and here 11
    left, right = ((2 * 0.5 * p + 1e-4) / (0.25 + p * p + 1e-4) for p in (0.6, 0.7))
    expected = (2 * left + right) / 3
    assert ssim(prediction, target, mask).item() == pytest.approx(expected, abs=1e-3)


@pytest.mark.slow
def test_a_window_belongs_to_its_middle_pixel():
    """One pixel differs: the window around it alone is the worst of all."""
    target = noise(1, 1, 32, 32)
    prediction = target.clone()
    prediction[0, 0, 9, 20] += 0.5
    found = torch.full((32, 32), 2.0)
    for row in range(5, 27):
        for column in range(5, 27):
            mask = torch.zeros_like(target, dtype=torch.bool)
            mask[0, 0, row, column] = True
            found[row, column] = ssim(prediction, target, mask)
    assert divmod(int(found.argmin()), 32) == (9, 20)


@pytest.mark.parametrize("score", SCORES)
def test_a_mask_of_all_pixels_changes_nothing(score: Score):
    prediction, target = noise(2, 1, 24, 20), noise(2, 1, 24, 20, seed=1)
    everywhere = torch.ones_like(target, dtype=torch.bool)
    torch.testing.assert_close(score(prediction, target, everywhere), score(prediction, target))


@pytest.mark.parametrize("score", SCORES)
def test_each_image_has_a_mask_of_its_own(score: Score):
    prediction, target = noise(2, 1, 24, 20), noise(2, 1, 24, 20, seed=1)
    mask = noise(2, 1, 24, 20, seed=2) > 0.5
    alone = [score(*(t[i : i + 1] for t in (prediction, target, mask))) for i in range(2)]
    torch.testing.assert_close(score(prediction, target, mask), torch.cat(alone))


@pytest.mark.parametrize("score", SCORES)
def test_an_empty_mask_has_no_score_and_leaves_the_others_theirs(score: Score):
    prediction, target = noise(2, 1, 24, 20), noise(2, 1, 24, 20, seed=1)
    mask = torch.ones_like(target, dtype=torch.bool)
    mask[0] = False
    assert score(prediction, target, mask).isnan().tolist() == [True, False]


def test_scores_without_a_mask_keep_their_bits():
    prediction, target = noise(2, 1, 24, 20), noise(2, 1, 24, 20, seed=1)
    error = (prediction - target).square().flatten(1).mean(1)
    power = target.square().flatten(1).mean(1)
    assert torch.equal(psnr(prediction, target), 10.0 * torch.log10(1.0 / error))
    assert torch.equal(nrmse(prediction, target), error.sqrt() / power.sqrt())
    window = {"kernel_size": (11, 11), "kernel_sigma": (1.5, 1.5)}
    similarity, _ = compute_ssim_and_cs(prediction, target, spatial_dims=2, **window)
    assert torch.equal(ssim(prediction, target), similarity.flatten(1).mean(1))
