import math

import pytest
import torch
from torch import Tensor

from grandrounds.core.messages import CaseScore
from grandrounds.tasks.metrics import mean_over_patients, nrmse, patient_means, psnr, ssim


def flat(*values: float, size: int = 16) -> Tensor:
    """One image of one value for each."""
    return torch.tensor(values)[:, None, None, None].expand(-1, 1, size, size).clone()


def checks(size: int = 32) -> Tensor:
    """A chessboard of zeros and ones, (1, 1, H, W)."""
    row = torch.arange(size) % 2
    return (row[:, None] ^ row[None]).float()[None, None]


def test_psnr_of_a_tenth_of_error_is_20_db_and_of_a_hundredth_40():
    found = psnr(flat(0.5, 0.5, 0.5), flat(0.6, 0.51, 1.0))
    assert found.tolist() == pytest.approx([20.0, 40.0, 10 * math.log10(4)], abs=1e-3)


def test_psnr_measures_by_one_and_not_by_an_images_own_maximum():
    """Half as bright with half the error: 6 dB better, where a self-scaled score would not move."""
    bright, dark = flat(1.0), flat(0.5)
    assert psnr(dark * 0.9, dark) - psnr(bright * 0.9, bright) == pytest.approx(6.0206, abs=1e-3)


def test_psnr_averages_squares_over_an_image_not_over_the_batch():
    prediction = flat(0.0, 0.0)
    prediction[0, 0, 0, 0] = 1.0
    found = psnr(prediction, flat(0.0, 0.0))
    assert found[0].item() == pytest.approx(10 * math.log10(256), abs=1e-4)


def test_psnr_of_equal_images_is_finite():
    assert psnr(flat(0.3), flat(0.3)).item() == pytest.approx(120.0)


def test_ssim_of_equal_images_is_one():
    assert ssim(checks(), checks()).item() == pytest.approx(1.0, abs=1e-6)


def test_ssim_of_two_flat_images_is_the_luminance_term():
    """(2ab + c1) / (a^2 + b^2 + c1), c1 = 0.01^2; contrast and structure are 1."""
    luminance = (2 * 0.2 * 0.6 + 1e-4) / (0.2**2 + 0.6**2 + 1e-4)
    assert ssim(flat(0.2), flat(0.6)).item() == pytest.approx(luminance, abs=1e-3)


def test_ssim_of_an_inverted_chessboard_is_negative():
    assert ssim(1 - checks(), checks()).item() < -0.9


def test_ssim_is_of_each_image_alone():
    both = ssim(torch.cat([checks(), flat(0.2, size=32)]), torch.cat([checks(), checks()]))
    assert both.shape == (2,)
    assert both[0].item() == pytest.approx(1.0, abs=1e-6)
    assert both[1].item() < 0.1


def test_nrmse_is_the_error_over_the_targets_root_mean_square():
    assert nrmse(flat(0.4, 0.0), flat(0.5, 0.5)).tolist() == pytest.approx([0.2, 1.0])


def test_nrmse_of_an_empty_target_is_finite():
    assert nrmse(flat(0.0), flat(0.0)).item() == 0.0


def score(value: float, *, site: str = "a", patient: str = "p1", task: str = "t") -> CaseScore:
    return CaseScore(site=site, patient=patient, case="1", task=task, values={"psnr": value})


def test_slices_are_averaged_within_a_patient_first():
    """A patient of many slices does not outweigh one of few: the mean of 10 and 20, not of five."""
    scores = [score(10.0)] * 4 + [score(20.0, patient="p2")]
    assert mean_over_patients(scores) == {"psnr": 15.0}
    assert patient_means(scores, "psnr") == {("a", "t", "p1"): 10.0, ("a", "t", "p2"): 20.0}


def test_patients_are_averaged_before_tasks_and_tasks_before_sites():
    scores = [
        score(10.0),
        score(20.0, patient="p2"),
        score(30.0, task="u"),
        score(40.0, site="b"),
    ]
    assert mean_over_patients(scores) == {"psnr": ((10 + 20) / 2 + 30) / 4 + 40 / 2}


def test_a_patient_of_one_site_is_not_the_same_patient_of_another():
    scores = [score(10.0), score(20.0, site="b")]
    assert len(patient_means(scores, "psnr")) == 2


def test_every_metric_is_averaged_and_no_score_is_none():
    both = CaseScore(site="a", patient="p", case="1", task="t", values={"x": 1.0, "y": 2.0})
    assert mean_over_patients([both]) == {"x": 1.0, "y": 2.0}
    assert mean_over_patients([]) == {}
