"""Convolutions that read memory which nobody wrote are found out."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from grandrounds.core import device as devices
from grandrounds.core import soundness
from grandrounds.core.device import choose_precision
from grandrounds.core.errors import BadStudy
from grandrounds.core.soundness import is_sound_in_3d, spoil_memory

CPU = torch.device("cpu")


@pytest.mark.slow
def test_float32_is_sound_on_every_cpu():
    assert is_sound_in_3d(CPU, torch.float32)


def test_a_convolution_that_reads_what_it_did_not_write_is_found_out(
    monkeypatch: pytest.MonkeyPatch,
):
    honest = functional.conv3d

    class Careless(torch.autograd.Function):
        """Passes maps on; the gradient is off by what memory held."""

        @staticmethod
        def forward(ctx: object, maps: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
            return maps.clone()

        @staticmethod
        def backward(ctx: object, gradient: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
            return gradient + torch.rand(()) * 1e-3

    def careless(maps: Tensor, weights: Tensor, *, padding: int) -> Tensor:
        return Careless.apply(honest(maps, weights, padding=padding))

    is_sound_in_3d.cache_clear()
    monkeypatch.setattr(soundness.functional, "conv3d", careless)
    assert not is_sound_in_3d(CPU, torch.float32)
    is_sound_in_3d.cache_clear()


@pytest.mark.slow
def test_memory_is_spoiled_without_a_trace_in_the_random_numbers():
    before = torch.get_rng_state()
    spoil_memory(CPU)
    is_sound_in_3d.cache_clear()
    is_sound_in_3d(CPU, torch.float32)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.fixture
def unsound(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine that multiplies in bf16, and whose 3-D convolutions do not repeat."""
    monkeypatch.setattr(devices, "_cpu_features", lambda: frozenset({"avx512_bf16"}))
    monkeypatch.setattr(devices, "is_sound_in_3d", lambda *_: False)


@pytest.mark.usefixtures("unsound")
def test_volumes_are_computed_in_fp32_where_bf16_does_not_repeat():
    assert choose_precision("auto", CPU, volumes=True) == torch.float32
    assert choose_precision("auto", CPU) == torch.bfloat16
    assert choose_precision("fp64", CPU, volumes=True) == torch.float64
    with pytest.raises(BadStudy, match="other gradients each time on this machine"):
        choose_precision("bf16", CPU, volumes=True)


def test_volumes_are_computed_in_bf16_where_it_repeats(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(devices, "_cpu_features", lambda: frozenset({"avx512_bf16"}))
    monkeypatch.setattr(devices, "is_sound_in_3d", lambda *_: True)
    assert choose_precision("auto", CPU, volumes=True) == torch.bfloat16
    assert choose_precision("bf16", CPU, volumes=True) == torch.bfloat16
