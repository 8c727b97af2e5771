from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import Literal, cast

import pytest
import torch
from torch import Generator, Tensor, nn

from grandrounds.core.weights import Filter, digest
from grandrounds.site.training import (
    BatchSource,
    Trainer,
    Training,
    TrainingLoop,
    TrainingResult,
    rate_factor,
    step,
)
from grandrounds.tasks.task import Batch, Examples, Task


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


def lesson_of(numbers: Numbers, task: Zero, *, seed: int = 0) -> BatchSource:
    generator = Generator().manual_seed(seed)
    return BatchSource(cast(Task, task), cast(Examples, numbers), 3, generator)


def everything(_: str) -> bool:
    return True


def learn(
    numbers: Numbers,
    *,
    epochs: int = 1,
    steps: int = 0,
    seed: int = 0,
    task: Zero | None = None,
    kind: Literal["adam", "sgd"] = "adam",
    trained: Filter = everything,
) -> tuple[Trainer, TrainingResult]:
    torch.manual_seed(0)
    model = nn.ModuleDict({"first": nn.Linear(1, 1), "second": nn.Linear(1, 1)})
    bench = Trainer(model, torch.device("cpu"), torch.float32, kind=kind)
    bench.set_rate(0.1)
    lesson = lesson_of(numbers, task or Zero(), seed=seed)
    with bench.train_only(trained):
        return bench, TrainingLoop(bench, lesson).train(epochs=epochs, steps=steps)


def test_each_epoch_sees_every_example_once_and_no_remainder_is_dropped():
    numbers = Numbers(7)
    _, trained = learn(numbers, epochs=2)
    assert [len(batch) for batch in numbers.seen] == [3, 3, 1, 3, 3, 1]
    epochs = [sorted(chain(*numbers.seen[:3])), sorted(chain(*numbers.seen[3:]))]
    assert epochs == [[*range(7)], [*range(7)]]
    assert trained.steps == 6


@pytest.mark.parametrize(("steps", "sizes"), [(2, [3, 3]), (5, [3, 3, 1, 3, 3])])
def test_steps_count_batches_in_place_of_epochs(steps: int, sizes: list[int]):
    numbers = Numbers(7)
    _, trained = learn(numbers, epochs=9, steps=steps)
    assert [len(batch) for batch in numbers.seen] == sizes
    assert trained.steps == steps


def test_steps_begin_as_epochs_do():
    """As many steps as epochs have batches are these epochs, to the bit."""
    first, second = Numbers(7), Numbers(7)
    by_epochs, _ = learn(first, epochs=2)
    by_steps, _ = learn(second, steps=6)
    assert first.seen == second.seen
    assert digest(by_epochs.weights(everything)) == digest(by_steps.weights(everything))


def test_a_lesson_counts_its_batches_before_it_gives_them():
    lesson = lesson_of(Numbers(7), Zero())
    assert lesson.num_batches(epochs=2) == 6


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
    bench = Trainer(model, torch.device("cpu"), torch.float32, rates={"part.bias": 0.1})
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


def start() -> dict[str, Tensor]:
    bench, _ = learn(Numbers(1), epochs=0)
    return bench.weights(everything)


def test_what_is_not_trained_does_not_move_and_can_be_trained_again():
    bench, trained = learn(Numbers(6), trained=lambda name: name.startswith("first."))
    moved = {n for n, t in start().items() if not torch.equal(t, bench.weights(everything)[n])}
    assert moved == {"first.weight", "first.bias"}
    assert set(trained.losses) == {"first", "second"}
    assert all(parameter.requires_grad for parameter in bench.model.parameters())


def test_a_part_of_which_nothing_is_trained_takes_no_step():
    bench, _ = learn(Numbers(6), trained=lambda name: name.startswith("first."))
    state = bench.optimizer_state(everything)
    assert {name.split("/")[1] for name in state} == {"first"}


def test_momentum_of_what_is_not_trained_moves_nothing():
    """An optimiser that remembers a gradient would go on without a new one."""
    bench, _ = learn(Numbers(6))
    before = bench.weights(everything)
    lesson = lesson_of(Numbers(6), Zero())
    with bench.train_only(lambda name: name == "first.weight"):
        TrainingLoop(bench, lesson).train(epochs=2)
    after = bench.weights(everything)
    assert {n for n, t in before.items() if not torch.equal(t, after[n])} == {"first.weight"}


def test_training_only_is_over_after_an_error():
    bench, _ = learn(Numbers(1))
    with pytest.raises(KeyError), bench.train_only(lambda _: False):
        raise KeyError
    assert all(parameter.requires_grad for parameter in bench.model.parameters())


def test_what_was_frozen_before_stays_frozen():
    bench, _ = learn(Numbers(1))
    frozen = bench.parameters("first")["first.weight"].requires_grad_(False)
    with bench.train_only(everything):
        assert not frozen.requires_grad
    assert not frozen.requires_grad


def test_a_loss_that_moves_nothing_is_a_loss_without_a_step():
    bench, _ = learn(Numbers(1))
    before = bench.weights(everything)
    step(bench, "first", torch.tensor(2.0))
    assert digest(bench.weights(everything)) == digest(before)


def test_sgd_takes_the_gradient_times_the_rate():
    """One example, x = 0: the loss is b^2, its gradient 2 b."""
    bench, _ = learn(Numbers(1), kind="sgd")
    first, after = start(), bench.weights(everything)
    torch.testing.assert_close(after["first.bias"], first["first.bias"] * (1 - 2 * 0.1))
    assert torch.equal(after["first.weight"], first["first.weight"])
    assert bench.optimizer_state(everything) == {}


def test_sgds_momentum_is_state_that_comes_back():
    model = nn.ModuleDict({"first": nn.Linear(1, 1), "second": nn.Linear(1, 1)})
    bench = Trainer(model, torch.device("cpu"), torch.float32, kind="sgd", momentum=0.9)
    bench.set_rate(0.1)
    lesson = lesson_of(Numbers(6), Zero())
    TrainingLoop(bench, lesson).train(epochs=1)
    saved = bench.optimizer_state(everything)
    assert "optimizer/second/bias/momentum_buffer" in saved
    bench.load_optimizer_state({})
    bench.load_optimizer_state(saved)
    assert digest(bench.optimizer_state(everything)) == digest(saved)


def test_parameters_have_their_names_in_the_whole_model():
    bench, _ = learn(Numbers(1))
    assert set(bench.parameters("first")) == {"first.weight", "first.bias"}
    assert set(bench.parameters("")) == set(bench.model.state_dict())
