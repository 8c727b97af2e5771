from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import cast

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from grandrounds.models.layers import channels_last
from grandrounds.models.norms import (
    BatchNorm,
    InstanceNorm,
    Norm,
    norm_layer,
    normalise,
    own_statistics,
    statistics,
)

SHAPES = [(1, 64, 64, 64), (2, 24, 31, 17), (3, 7, 5, 3)]  # also widths that fill no register
FAR = 30  # the mean of maps with spread 1: float32 sums of them lose digits
LAYOUTS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}


@contextmanager
def threads(count: int) -> Generator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def maps(*shape: int, layout: str = "channels_last") -> Tensor:
    return (noise(*shape) + FAR).contiguous(memory_format=LAYOUTS[layout])


def exactly(features: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """The same in float64, contiguous."""
    wide = features.double().contiguous()
    return functional.instance_norm(wide) * scale[..., None, None] + shift[..., None, None]


def error(found: Tensor, wanted: Tensor) -> float:
    """The largest difference, beside the largest value."""
    return ((found - wanted).abs().max() / wanted.abs().max()).item()


def in_batch(features: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    norm = BatchNorm(features.shape[1]).train()
    norm.weight.data, norm.bias.data = scale[0], shift[0]
    return norm(features)


def scales(batch: int, channels: int) -> tuple[Tensor, Tensor]:
    return 1 + 0.1 * noise(batch, channels, seed=1), noise(batch, channels, seed=2)


@pytest.mark.parametrize("shape", SHAPES)
def test_statistics_of_maps_far_from_zero_are_those_of_float64(shape: tuple[int, ...]):
    features = maps(*shape)
    mean, variance = statistics(features)
    wide = features.double()
    torch.testing.assert_close(mean.double(), wide.mean((0, 2, 3)), rtol=3e-7, atol=0)
    expected = wide.var((0, 2, 3), correction=0)
    torch.testing.assert_close(variance.double(), expected, rtol=1e-6, atol=0)


@pytest.mark.parametrize("shape", [*SHAPES, (1, 16, 256, 256)])
def test_normalised_maps_far_from_zero_are_those_of_float64(shape: tuple[int, ...]):
    features, ones = maps(*shape), torch.ones(shape[:2])
    wanted = exactly(features, ones, 0 * ones)
    assert (normalise(features, ones, 0 * ones) - wanted).abs().max() < 1e-5


def test_the_native_kernel_would_be_wrong_in_the_fourth_digit():
    """The reason for all this; where it fails, a release of torch has made it needless."""
    features, ones = maps(1, 16, 256, 256), torch.ones(1, 16)
    with threads(1):
        native = functional.batch_norm(features, None, None, training=True)
    assert (native - exactly(features, ones, 0 * ones)).abs().max() > 1e-4


@pytest.mark.parametrize("norm", [normalise, in_batch])
@pytest.mark.parametrize("shape", [*SHAPES, (1, 64, 128, 128)])
def test_results_are_the_same_to_the_bit_for_one_and_two_threads(
    shape: tuple[int, ...], norm: Callable[[Tensor, Tensor, Tensor], Tensor]
):
    features, found = maps(*shape), list[Tensor]()
    for count in (1, 2, 3):
        with threads(count):
            found.append(norm(features, *scales(*shape[:2])))
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])


@pytest.mark.parametrize("shape", SHAPES)
def test_both_layouts_have_nearly_the_same_maps_and_gradients(shape: tuple[int, ...]):
    outcomes: list[list[Tensor]] = []
    for layout in LAYOUTS:
        features = maps(*shape, layout=layout).requires_grad_()
        scale, shift = (each.requires_grad_() for each in scales(*shape[:2]))
        out = normalise(features, scale, shift)
        loss = (out * noise(*shape, seed=3)).sum()
        outcomes.append([out, *torch.autograd.grad(loss, (features, scale, shift))])
    for contiguous, last in zip(*outcomes, strict=True):
        assert error(last, contiguous) < 1e-5


@pytest.mark.parametrize("shape", SHAPES)
def test_gradients_are_those_of_float64(shape: tuple[int, ...]):
    features, weights = maps(*shape), noise(*shape, seed=3)
    scale, shift = scales(*shape[:2])
    gradients: list[tuple[Tensor, ...]] = []
    for norm in (normalise, exactly):
        inputs = [each.detach().requires_grad_() for each in (features, scale, shift)]
        gradients.append(torch.autograd.grad((norm(*inputs) * weights).sum(), inputs))
    for found, wanted in zip(*gradients, strict=True):
        assert error(found, wanted) < 1e-5


def test_a_gradient_of_a_gradient_is_that_of_float64():
    features, (scale, shift) = maps(1, 8, 6, 5) - FAR, scales(1, 8)
    found: list[Tensor] = []
    for norm in (normalise, exactly):
        source = features.detach().requires_grad_()
        loss = norm(source, scale, shift).pow(3).sum()
        (slope,) = torch.autograd.grad(loss, source, create_graph=True)
        found.append(torch.autograd.grad(slope.square().sum(), source)[0])
    assert error(*found) < 1e-5


def test_what_needs_no_gradient_gets_none():
    features, (scale, shift) = maps(1, 8, 6, 5).requires_grad_(), scales(1, 8)
    normalise(features, scale, shift).sum().backward()
    assert features.grad is not None
    assert scale.grad is None


def twins(channels: int) -> tuple[nn.BatchNorm2d, nn.BatchNorm2d]:
    """Ours, and the native one in float64."""
    ours, native = norm_layer("batch", channels), nn.BatchNorm2d(channels).double()
    assert isinstance(ours, BatchNorm)
    return ours, native


def test_running_statistics_are_counted_as_the_native_module_counts():
    ours, native = twins(24)
    for seed in range(3):
        features = maps(2, 24, 16, 16) * (1 + seed)
        native(features.double().contiguous())
        ours(features)
    state = ours.state_dict()
    for name, wanted in native.state_dict().items():
        torch.testing.assert_close(state[name], wanted.to(state[name].dtype), rtol=2e-7, atol=0)
    assert state["num_batches_tracked"] == 3


def test_batch_norm_has_the_maps_and_gradients_of_float64():
    ours, native = twins(24)
    features, weights = maps(2, 24, 16, 16), noise(2, 24, 16, 16, seed=3)
    found: list[list[Tensor]] = []
    for norm, source in ((ours, features), (native, features.double().contiguous())):
        source = source.detach().requires_grad_()
        out = norm(source)
        inputs = [source, *norm.parameters()]
        found.append([out, *torch.autograd.grad((out * weights).sum(), inputs)])
    for single, wide in zip(*found, strict=True):
        assert error(single, wide) < 1e-5


def test_in_evaluation_batch_norm_takes_what_it_counted():
    ours, _ = twins(8)
    features = maps(2, 8, 6, 5)
    ours(features)
    before = {name: tensor.clone() for name, tensor in ours.state_dict().items()}
    mean, variance = (ours.state_dict()[name] for name in ("running_mean", "running_var"))
    wanted = functional.batch_norm(features, mean, variance)
    assert torch.equal(ours.eval()(features), wanted)
    assert all(torch.equal(ours.state_dict()[name], each) for name, each in before.items())


def test_a_batchs_own_statistics_are_exact_and_not_counted():
    ours, _ = twins(8)
    features, ones = maps(1, 8, 64, 64), torch.ones(1, 8)
    with own_statistics(ours.eval()):
        found = ours(features)
    assert (found - exactly(features, ones, 0 * ones)).abs().max() < 1e-5
    assert ours.state_dict()["num_batches_tracked"] == 0
    assert ours.state_dict()["running_mean"].abs().max() == 0


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_other_types_keep_the_native_kernel(dtype: torch.dtype):
    """In bfloat16 maps are coarser than their statistics are wrong, and it would cost more."""
    features = noise(1, 8, 16, 16).to(dtype).contiguous(memory_format=torch.channels_last)
    scale, shift = (each.to(torch.promote_types(dtype, torch.float32)) for each in scales(1, 8))
    native = functional.batch_norm(features, None, None, scale[0], shift[0], training=True)
    assert torch.equal(normalise(features, scale, shift), native)


@pytest.mark.parametrize("norm", ["instance", "batch"])
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # tracing is torch's past
@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")  # of sizes, which here are fixed
def test_a_recorded_graph_holds_native_operators_alone(norm: Norm):
    layer, features = norm_layer(norm, 8), maps(2, 8, 6, 5)
    traced = cast(torch.jit.ScriptModule, torch.jit.trace(layer, features, check_trace=False))  # pyright: ignore[reportUnknownMemberType]
    assert "Normed" not in str(traced.inlined_graph)  # a Python function would show its name
    torch.testing.assert_close(traced(features), layer(features), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("batch", [1, 3])
def test_affine_instance_norm_equals_the_native_module(batch: int):
    ours, native = InstanceNorm(4), nn.InstanceNorm2d(4, affine=True)
    state = {"weight": noise(4), "bias": noise(4, seed=1)}
    ours.load_state_dict(state)
    native.load_state_dict(state)
    features = noise(batch, 4, 8, 8).contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(ours(features), native(features))


@pytest.mark.parametrize("batch", [1, 2])
def test_channels_last_survives_normalisation(batch: int):
    image = channels_last(noise(batch, 1, 8, 8))
    features = functional.conv2d(image, noise(4, 1, 3, 3), padding=1)
    out = normalise(features, torch.ones(batch, 4), torch.zeros(batch, 4))
    assert out.stride() == features.stride() == (256, 1, 32, 4)
