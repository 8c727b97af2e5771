from dataclasses import dataclass
from math import sqrt

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from grandrounds.site.record_training import PatientGradients, PatientLots, lots_per_epoch
from grandrounds.tasks.task import Batch, Case

GRADIENTS = st.lists(
    st.lists(st.floats(-1e3, 1e3, width=32), min_size=3, max_size=3), min_size=1, max_size=5
)


@dataclass(frozen=True)
class Named:
    """Examples of patients of these names."""

    patients: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.patients)

    def case(self, index: int) -> Case:
        return Case("oak", self.patients[index], str(index), "line")

    def batch(self, indices: object, generator: object) -> Batch:
        raise AssertionError("nobody asks for data")


def lots(count: int, size: int) -> PatientLots:
    return PatientLots.of(Named(tuple(f"p{n:03d}" for n in range(count))), size)


def summed(gradients: list[list[float]], clip: float) -> torch.Tensor:
    """The sum of patients' clipped gradients over two parameters."""
    first, second = nn.Parameter(torch.zeros(2)), nn.Parameter(torch.zeros(1))
    found = PatientGradients({"first": first, "second": second}, clip)
    for gradient in gradients:
        first.grad, second.grad = torch.tensor(gradient[:2]), torch.tensor(gradient[2:])
        found.add()
    return torch.cat([found.sums["first"], found.sums["second"]])


@pytest.mark.slow
@settings(max_examples=20, deadline=None)
@given(gradients=GRADIENTS, another=GRADIENTS, clip=st.floats(0.1, 10))
def test_one_patient_more_moves_the_sum_by_the_clip_at_most(
    gradients: list[list[float]], another: list[list[float]], clip: float
):
    moved = summed([*gradients, another[0]], clip).double() - summed(gradients, clip).double()
    assert float(moved.norm()) <= clip * (1 + 1e-5) + 1e-5


def test_a_gradient_is_clipped_over_all_parameters_together_and_a_short_one_is_left():
    assert summed([[3.0, 0.0, 4.0]], 1.0).tolist() == pytest.approx([0.6, 0.0, 0.8])
    assert summed([[3.0, 0.0, 4.0]], 5.0).tolist() == [3.0, 0.0, 4.0]


def test_all_slices_of_a_patient_are_one_record():
    found = PatientLots.of(Named(("a", "b", "a", "c", "b", "a")), 2)
    assert found.patients == ((0, 2, 5), (1, 4), (3,))
    assert (found.expected, found.sampling) == (2, 2 / 3)


def test_each_patient_is_drawn_with_its_probability_and_lots_differ():
    many = lots(40, 10)
    drawn = [many.draw(f"{number}".encode()) for number in range(400)]
    shares = torch.tensor([[n in lot for n in range(40)] for lot in drawn]).double().mean(0)
    assert float(shares.mean()) == pytest.approx(0.25, abs=0.01)
    assert float((shares - 0.25).abs().max()) < 4 * sqrt(0.25 * 0.75 / 400)
    assert len({len(lot) for lot in drawn}) > 5  # their sizes vary: no fixed batches
    assert many.draw(b"7") == many.draw(b"7")


def test_fewer_patients_than_a_lot_are_all_in_each_one():
    few = lots(3, 8)
    assert few.draw(b"any") == [0, 1, 2]
    assert (few.expected, few.sampling, few.num_lots(epochs=2)) == (3, 1.0, 2)
    assert lots_per_epoch(17, 8) == 3


def test_the_noise_of_a_lot_has_its_deviation_whoever_was_drawn():
    weight = nn.Parameter(torch.zeros(2000))
    empty = PatientGradients({"weight": weight}, 0.5)
    [(_, noise)] = empty.noisy_mean(4, 3.0, b"key")
    assert float(noise.std()) == pytest.approx(0.5 * 3.0 / 4, rel=0.05)
    full = PatientGradients({"weight": weight}, 0.5)
    weight.grad = torch.ones(2000)
    full.add()
    [(_, both)] = full.noisy_mean(4, 3.0, b"key")
    assert torch.allclose(both - noise, torch.full((2000,), 0.5 / sqrt(2000) / 4), atol=1e-6)
    [(_, other)] = empty.noisy_mean(4, 3.0, b"another key")
    assert not torch.equal(noise, other)


def test_a_gradient_that_is_not_finite_stops_the_round():
    with pytest.raises(FloatingPointError, match="not finite"):
        summed([[float("nan"), 0.0, 0.0]], 1.0)
