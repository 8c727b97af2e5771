"""What methods do to gradients, against autograd and against plain SGD."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from grandrounds.algorithms.method import GradientTerm, Pull
from grandrounds.algorithms.methods.scaffold import Control
from grandrounds.core.weights import Weights, select
from grandrounds.site.training import Trainer, step

RATE = 0.05
STEPS = 3


def bench_of() -> Trainer:
    """A small model in float64 under plain SGD."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1)).double()
    bench = Trainer(model, torch.device("cpu"), torch.float64, kind="sgd")
    bench.set_rate(RATE)
    return bench


def inputs() -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(5, 3, generator=generator).double() for _ in range(STEPS)]


def learn(bench: Trainer, *nudges: GradientTerm) -> Weights:
    """Take a few steps, and give where they led."""
    for x in inputs():
        step(bench, "", bench.model(x).square().mean(), nudges)
    return bench.weights(lambda _: True)


def noise(like: Weights, seed: int) -> Weights:
    generator = torch.Generator().manual_seed(seed)
    return {
        name: torch.randn(tensor.shape, generator=generator).double()
        for name, tensor in like.items()
    }


def assert_close(one: Weights, other: Weights) -> None:
    assert one.keys() == other.keys()
    for name, tensor in one.items():
        torch.testing.assert_close(tensor, other[name], rtol=1e-9, atol=1e-12)


def everything(_: str) -> bool:
    return True


def gradients(
    bench: Trainer, nudges: Sequence[GradientTerm], penalty: Tensor | float = 0.0
) -> Weights:
    """The gradients of one loss, with a penalty that autograd differentiates."""
    bench.model.zero_grad()
    loss = bench.model(inputs()[0]).square().mean() + penalty
    loss.backward()
    parameters = bench.parameters("")
    for nudge in nudges:
        nudge(parameters)
    return {n: p.grad.clone() for n, p in parameters.items() if p.grad is not None}


def test_a_pull_is_the_gradient_of_half_its_strength_times_the_squared_distance():
    bench = bench_of()
    towards = noise(bench.weights(everything), 2)
    apart = [(p - towards[n]).square().sum() for n, p in bench.parameters("").items()]
    penalty = 0.7 / 2 * torch.stack(apart).sum()
    pulled = gradients(bench, [Pull(0.7, towards)])
    assert_close(pulled, gradients(bench, [], penalty))


def test_a_pull_leaves_alone_what_it_has_no_target_for():
    bench = bench_of()
    free = gradients(bench, [])
    pulled = gradients(bench, [Pull(0.7, select(noise(free, 2), lambda n: n.startswith("2.")))])
    moved = {name for name in free if not torch.equal(free[name], pulled[name])}
    assert moved == {"2.weight", "2.bias"}


def test_a_pull_at_its_target_does_nothing():
    bench = bench_of()
    assert_close(gradients(bench, [Pull(0.7, bench.weights(everything))]), gradients(bench, []))


def test_a_pull_without_end_brings_one_step_of_sgd_to_the_target():
    """With rate x strength = 1 and no other gradient, w - (w - w0) = w0."""
    bench = bench_of()
    towards = noise(bench.weights(everything), 2)
    step(bench, "", 0 * bench.model(inputs()[0]).sum(), [Pull(1 / RATE, towards)])
    assert_close(bench.weights(everything), towards)


def test_a_control_learns_option_2_of_scaffold():
    """c_i+ = (x - y) / (K rate) - c + c_i, in plain SGD. Karimireddy et al. 2020, equation 4."""
    bench = bench_of()
    x = bench.weights(everything)
    own, server = noise(x, 3), noise(x, 4)
    control = Control(everything, own, server)
    y = learn(bench, control)
    expected = {n: (x[n] - y[n]) / (STEPS * RATE) - server[n] + own[n] for n in x}
    assert_close(control.learned(), expected)


def test_a_control_corrects_each_gradient_by_c_less_c_i():
    bench = bench_of()
    plain = gradients(bench, [])
    own, server = noise(plain, 3), noise(plain, 4)
    corrected = gradients(bench, [Control(everything, own, server)])
    assert_close(corrected, {n: g + server[n] - own[n] for n, g in plain.items()})


def test_a_first_round_learns_without_correcting():
    """Nothing is known of drift yet: training is plain, and c_i is the mean gradient."""
    control = Control(everything, {}, {})
    bench = bench_of()
    x = bench.weights(everything)
    y = learn(bench, control)
    assert_close(y, learn(bench_of()))
    assert_close(control.learned(), {n: (x[n] - y[n]) / (STEPS * RATE) for n in x})


def test_a_control_is_of_what_is_shared_alone():
    bench = bench_of()
    control = Control(lambda name: name.startswith("0."), {}, {})
    learn(bench, control)
    assert set(control.learned()) == {"0.weight", "0.bias"}


def test_what_was_not_trained_keeps_its_control():
    bench = bench_of()
    own = noise(bench.weights(everything), 3)
    control = Control(everything, own, own)
    with bench.train_only(lambda name: name.startswith("0.")):
        learn(bench, control)
    still = [n for n, t in control.learned().items() if torch.equal(t, own[n])]
    assert still == ["2.weight", "2.bias"]
