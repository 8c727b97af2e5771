from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import cast

import pytest
import torch
from torch import Generator, Tensor, nn

from grandrounds.bench import Bench
from grandrounds.messages import LocalPlan
from grandrounds.tasks.task import Batch, Examples, Task
from grandrounds.training import Trained, Training, rate_factor, train


@pytest.mark.parametrize(
    ("round", "factor"), [(1, 1.0), (74, 1.0), (75, 0.9868), (100, 0.658), (149, 0.0132), (150, 0)]
)
def test_the_reference_schedule_decays_a_round_early_and_ends_at_zero(round: int, factor: float):
    assert rate_factor("reference", round, 150) == pytest.approx(factor, abs=2e-4)


def test_the_reference_schedule_trains_its_last_round_with_exactly_zero():
    assert rate_factor("reference", 150, 150) == 0.0


def test_the_default_schedule_is_flat_then_linear_and_never_zero():
    factors = [rate_factor("constant-linear", round, 10) for round in range(1, 11)]
    assert factors == pytest.approx([1, 1, 1, 1, 1, 5 / 6, 4 / 6, 3 / 6, 2 / 6, 1 / 6])


@pytest.mark.parametrize("rounds", [1, 2, 3, 7, 150])
def test_the_default_schedule_never_rises_and_stays_above_zero(rounds: int):
    factors = [rate_factor("constant-linear", r, rounds) for r in range(1, rounds + 1)]
    assert factors == sorted(factors, reverse=True)
    assert factors[: rounds // 2] == [1.0] * (rounds // 2)
    assert factors[-1] > 0


def test_the_constant_schedule_is_constant():
    assert {rate_factor("constant", round, 9) for round in range(1, 10)} == {1.0}


def test_a_rate_is_the_learning_rate_times_the_factor():
    assert Training(learning_rate=0.5).rate(10, 10) == pytest.approx(0.5 / 6)


@dataclass(frozen=True)
class Numbers:
    """Examples 0, 1, 2, ...: remembers which were asked for."""

    count: int
    seen: list[list[int]] = field(default_factory=list[list[int]])

    def __len__(self) -> int:
        return self.count

    def batch(self, indices: Sequence[int], generator: Generator | None) -> Batch:
        self.seen.append(list(indices))
        return {"x": torch.tensor([[float(index)] for index in indices])}


@dataclass(frozen=True)
class Zero:
    """A line that learns to be zero, in two parts that take turns."""

    worst: float = 1.0

    def losses(self, model: nn.Module, batch: Batch) -> Iterator[tuple[str, Tensor]]:
        for part in ("first", "second"):
            yield part, model.get_submodule(part)(batch["x"]).square().mean() * self.worst


def learn(
    numbers: Numbers, *, epochs: int = 1, seed: int = 0, task: Zero | None = None
) -> tuple[Bench, Trained]:
    torch.manual_seed(0)
    model = nn.ModuleDict({"first": nn.Linear(1, 1), "second": nn.Linear(1, 1)})
    bench = Bench(model, torch.device("cpu"), torch.float32)
    bench.set_rate(0.1)
    plan, real = LocalPlan(epochs=epochs), cast(Task, task or Zero())
    examples = cast(Examples, numbers)
    return bench, train(bench, real, examples, plan=plan, batch_size=3, seed=seed)


def test_each_epoch_sees_every_example_once_and_no_remainder_is_dropped():
    numbers = Numbers(7)
    _, trained = learn(numbers, epochs=2)
    assert [len(batch) for batch in numbers.seen] == [3, 3, 1, 3, 3, 1]
    epochs = [sorted(chain(*numbers.seen[:3])), sorted(chain(*numbers.seen[3:]))]
    assert epochs == [[*range(7)], [*range(7)]]
    assert trained.steps == 6


def test_the_seed_alone_decides_the_order_and_epochs_differ():
    first, second, other = Numbers(7), Numbers(7), Numbers(7)
    learn(first, epochs=2, seed=1)
    learn(second, epochs=2, seed=1)
    learn(other, epochs=2, seed=2)
    assert first.seen == second.seen
    assert first.seen != other.seen
    assert first.seen[:3] != first.seen[3:]


def test_every_part_has_its_own_optimiser_and_mean_loss():
    bench, trained = learn(Numbers(6))
    assert list(trained.losses) == ["first", "second"]
    state = bench.optimizer_state(lambda _: True)
    assert {name.split("/")[1] for name in state} == {"first", "second"}
    assert all(state[f"optimizer/{part}/weight/step"] == 2 for part in trained.losses)


def test_a_rate_factor_belongs_to_the_parameters_of_its_prefix():
    model = nn.ModuleDict({"part": nn.Linear(1, 1)})
    bench = Bench(model, torch.device("cpu"), torch.float32, rates={"part.bias": 0.1})
    bench.set_rate(1.0)
    slow = {group["factor"]: group["lr"] for group in bench.optimizer("part").param_groups}
    assert slow == {1.0: 1.0, 0.1: 0.1}
    bench.set_rate(0.5)
    halved = {group["factor"]: group["lr"] for group in bench.optimizer("part").param_groups}
    assert halved == {1.0: 0.5, 0.1: 0.05}


def test_a_loss_that_is_not_finite_stops_the_training():
    with pytest.raises(FloatingPointError, match="loss of 'first' is not finite; try a lower"):
        learn(Numbers(4), task=Zero(worst=float("inf")))


def test_optimiser_state_comes_back_to_the_bit_and_what_is_not_named_starts_anew():
    bench, _ = learn(Numbers(6))
    saved = bench.optimizer_state(lambda name: name.startswith("first."))
    bench.load_optimizer_state(saved)
    found = bench.optimizer_state(lambda _: True)
    assert found.keys() == saved.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in saved.items())
