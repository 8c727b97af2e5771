"""An update of one image gives the patient away, and a protected one does not."""

import pytest
import torch

from grandrounds.audit.inversion import (
    CLEAR,
    CLEAR_MARGIN,
    image_prior,
    judge_reconstructions,
    total_variation,
    update_distance,
)
from tests.helpers.inverted_updates import attack


@pytest.mark.slow
def test_the_inversion_of_the_tuned_case_beats_its_controls():
    found = attack(noise=0.0)
    assert found.detail > CLEAR
    assert found.detail > CLEAR_MARGIN + max(found.controls.values())
    assert judge_reconstructions("", [found], ("yes", "no"), ()).verdict == "found"


@pytest.mark.full
def test_with_clip_and_noise_the_same_attack_stays_below_the_threshold():
    found = attack(noise=0.1)
    assert judge_reconstructions("", [found], ("yes", "no"), ()).verdict == "not found"


def test_an_update_is_no_distance_from_itself_whatever_its_length():
    update = [torch.tensor([1.0, 2.0]), torch.zeros(3), torch.tensor([[3.0]])]
    assert float(update_distance([2 * each for each in update], update)) == pytest.approx(0.0)
    assert float(update_distance([-each for each in update], update)) == pytest.approx(2.0)


def test_flat_images_do_not_vary_and_stripes_do():
    stripes = torch.arange(4.0).remainder(2).expand(1, 4, 4)
    assert float(total_variation(torch.ones(1, 4, 4))) == 0.0
    assert float(total_variation(stripes)) == 1.0


def test_a_prior_s_mixtures_hold_the_images_it_was_made_of():
    images = torch.rand(5, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    prior = image_prior(images, 10)
    coefficients = torch.linalg.lstsq(prior.axes.flatten(1).T, (images[0] - prior.mean).flatten())
    assert prior.image(coefficients.solution).sub(images[0]).abs().max() < 1e-5
