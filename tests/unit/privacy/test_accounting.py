from math import exp, inf, sqrt

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import norm

from grandrounds.privacy.accounting import GaussianSteps, spending

NOISES = st.floats(0.5, 20.0)
STEPS = st.integers(1, 500)


def _delta(epsilon: float, noise: float) -> float:
    """The delta of one Gaussian mechanism at an epsilon: Balle and Wang 2018, theorem 8."""
    left, right = 1 / (2 * noise), epsilon * noise
    return float(norm.cdf(left - right) - exp(epsilon) * norm.cdf(-left - right))


@pytest.mark.parametrize("noise", [0.7, 1.0, 4.0, 10.0])
@pytest.mark.parametrize("delta", [1e-3, 1e-5, 1e-7])
def test_one_gaussian_has_the_epsilon_of_its_closed_form(noise: float, delta: float):
    found = spending([GaussianSteps(noise)], delta)
    assert found.accountant == "exact"
    assert _delta(found.epsilon, noise) == pytest.approx(delta, rel=1e-6)


def test_steps_without_sampling_are_one_gaussian_of_less_noise():
    mixed = spending([GaussianSteps(4.0, steps=9), GaussianSteps(2.0, steps=4)], 1e-5)
    assert mixed.epsilon == pytest.approx(
        spending([GaussianSteps(1 / sqrt(9 / 16 + 4 / 4))], 1e-5).epsilon
    )


@pytest.mark.slow
def test_poisson_sampling_meets_published_numbers():
    # TensorFlow Privacy, compute_dp_sgd_privacy_test.py, Test0, by RDP: an upper bound.
    found = spending([GaussianSteps(1.3, 150 / 60000, 6000)], 1e-5)
    assert found.accountant == "PLD"
    assert 0.6 < found.epsilon < 0.7242234026109595
    # Koskela et al. 2020: epsilon is 1 at this delta, to the digits of their numerical accountant.
    exact = spending([GaussianSteps(4.0, 0.01, 10_000)], 4.243484012034273e-06)
    assert exact.epsilon == pytest.approx(1.0, abs=2e-3)
    assert exact.epsilon >= 1.0 - 1e-4


@settings(max_examples=60, deadline=None)
@given(noise=NOISES, steps=STEPS, more=st.integers(1, 100), louder=st.floats(1.01, 3.0))
def test_epsilon_grows_with_rounds_and_falls_with_noise(
    noise: float, steps: int, more: int, louder: float
):
    here = spending([GaussianSteps(noise, 1.0, steps)], 1e-5).epsilon
    assert spending([GaussianSteps(noise, 1.0, steps + more)], 1e-5).epsilon > here
    assert spending([GaussianSteps(noise * louder, 1.0, steps)], 1e-5).epsilon < here


@pytest.mark.slow
def test_epsilon_of_sampled_steps_grows_with_steps_and_sampling_and_falls_with_noise():
    def epsilon(noise: float, sampling: float, steps: int) -> float:
        return spending([GaussianSteps(noise, sampling, steps)], 1e-5).epsilon

    by_steps = [epsilon(4.0, 0.1, steps) for steps in (10, 40, 160)]
    by_sampling = [epsilon(4.0, sampling, 40) for sampling in (0.05, 0.1, 0.4, 1.0)]
    by_noise = [epsilon(noise, 0.1, 40) for noise in (8.0, 4.0, 2.0)]
    for found in (by_steps, by_sampling, by_noise):
        assert found == sorted(found)
        assert len(set(found)) == len(found)


def test_no_noise_reveals_all_and_no_release_nothing():
    assert spending([GaussianSteps(0.0)], 1e-5).epsilon == inf
    assert spending([], 1e-5).epsilon == 0.0
    assert spending([GaussianSteps(1.0, 1.0, 0)], 1e-5).epsilon == 0.0
