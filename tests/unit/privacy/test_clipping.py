"""An update is clipped and gets its share of noise, which nobody else can compute."""

import math
from dataclasses import replace

import pytest
import torch

from grandrounds.core.weights import Weights, digest
from grandrounds.privacy.clipping import ClipAndNoise, gaussian
from grandrounds.privacy.guard import Departure

START: Weights = {"a": torch.ones(300, 100), "b": torch.zeros(())}
UPDATE: Weights = {"a": torch.full((300, 100), 1.5), "b": torch.tensor(-3.0)}
NORM = math.sqrt(30_000 * 0.25 + 9)
ROSTER = ("alder", "birch", "cedar", "dune")
LEAVES = Departure("alder", 2, ROSTER, 8, UPDATE, START, seed=1, simulated=True)


def norm(update: Weights, start: Weights = START) -> float:
    return math.sqrt(sum(float((t - start[n]).double().square().sum()) for n, t in update.items()))


def noise_of(departure: Departure, guard: ClipAndNoise) -> Weights:
    noisy, plain = (
        guard.protect(departure).update,
        replace(guard, noise=0.0).protect(departure).update,
    )
    return {name: tensor - plain[name] for name, tensor in noisy.items()}


def test_a_long_update_is_as_long_as_the_clip_and_points_where_it_did():
    clipped = ClipAndNoise(2.0, 0.0).protect(LEAVES).update
    assert norm(clipped) == pytest.approx(2.0, rel=1e-4)
    assert (clipped["b"] - START["b"]) == pytest.approx(-3.0 * 2.0 / NORM)


def test_an_update_within_the_clip_without_noise_is_the_same_bits():
    out = ClipAndNoise(NORM * 1.001, 0.0).protect(LEAVES)
    assert digest(out.update) == digest(UPDATE)
    assert out.kept == {}


def test_the_noise_of_all_sites_adds_up_to_the_multiplier():
    guard = ClipAndNoise(0.5, 1.2)
    total = sum(noise_of(replace(LEAVES, site=site), guard)["a"].double() for site in ROSTER)
    assert isinstance(total, torch.Tensor)
    assert float(total.std()) == pytest.approx(0.5 * 1.2, rel=0.02)
    assert float(total.mean()) == pytest.approx(0, abs=0.02)


def test_numbers_are_normal_and_of_any_number():
    drawn = gaussian(b"key", "a", torch.empty(60_001))
    assert float((drawn.abs() < 1).double().mean()) == pytest.approx(
        math.erf(1 / math.sqrt(2)), abs=0.01
    )
    assert float(drawn.square().mean()) == pytest.approx(1, abs=0.02)
    assert gaussian(b"key", "a", torch.empty(0, 2)).shape == (0, 2)


@pytest.mark.parametrize(
    "other",
    [
        replace(LEAVES, round=3),
        replace(LEAVES, site="birch"),
        replace(LEAVES, roster=("birch", "alder", "cedar", "dune")),
        replace(LEAVES, start={**START, "b": torch.tensor(1e-3)}),
        replace(LEAVES, update={**UPDATE, "b": torch.tensor(-3.001)}),
    ],
)
def test_noise_is_used_for_one_message_alone(other: Departure):
    """Asked twice for a round from two starts, a site's answers differ by more than the update."""
    guard = ClipAndNoise(1e3, 1e-3)
    first, second = noise_of(LEAVES, guard)["a"], noise_of(other, guard)["a"]
    correlation = torch.corrcoef(torch.stack([first.flatten(), second.flatten()]))[0, 1]
    assert abs(float(correlation)) < 0.05
    assert digest(guard.protect(LEAVES).update) == digest(guard.protect(LEAVES).update)


def test_what_the_study_says_does_not_tell_a_real_site_s_noise_and_its_secret_lasts():
    guard, real = ClipAndNoise(1.0, 1.0), replace(LEAVES, simulated=False)
    first, second = guard.protect(real), guard.protect(real)
    assert digest(first.update) != digest(second.update)
    assert first.kept["noise/secret"].shape == (32,)
    later = replace(real, round=3, kept=first.kept)
    assert digest(guard.protect(later).update) == digest(guard.protect(later).update)
    assert guard.protect(later).kept["noise/secret"].equal(first.kept["noise/secret"])
