"""The flat U-Net: MONAI's arithmetic, and the same bits wherever it is cut."""

from itertools import pairwise

import pytest
import torch
from monai.networks.nets.basic_unet import BasicUNet
from torch import Tensor

from grandrounds.core.weights import digest
from grandrounds.models.norms import batch_norm_names
from grandrounds.models.segmentation_unet import UNet, UNetShape, build_unet, slid

SMALL = UNetShape(inputs=2, outputs=3, channels=(4, 6, 8))
FIVE = (4, 6, 8, 10, 12)
BLOCKS = {
    "conv_0": "encoder_0",
    "down_1": "encoder_1",
    "down_2": "encoder_2",
    "down_3": "encoder_3",
    "down_4": "bottleneck",
    "upcat_4": "decoder_3",
    "upcat_3": "decoder_2",
    "upcat_2": "decoder_1",
    "upcat_1": "decoder_0",
    "final_conv": "output",
}


def image(*shape: int) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("norm", ["instance", "batch"])
@pytest.mark.parametrize("dims", [2, 3])
def test_with_monais_weights_it_computes_what_monai_computes(dims: int, norm: str):
    shape = UNetShape(2, 3, FIVE, dims=dims, norm=norm)  # pyright: ignore[reportArgumentType]
    affine = (norm, {"affine": True})
    theirs = BasicUNet(dims, 2, 3, features=(*FIVE, FIVE[0]), norm=affine).eval()
    ours = build_unet(shape, seed=1).eval()
    for module, stage in BLOCKS.items():
        ours.network[stage].load_state_dict(theirs.get_submodule(module).state_dict())
    source = image(2, 2, *[32] * dims)
    assert torch.equal(ours(source), theirs(source))


def cut_run(model: UNet, cuts: list[int], source: Tensor) -> tuple[Tensor, list[set[str]]]:
    """Run the stages in pieces; the output, and what was carried over each cut."""
    names, carried = list(model.stages()), {"source": source}
    seen: list[set[str]] = []
    for first, last in pairwise([0, *cuts, len(names)]):
        carried = model.run(names[first:last], carried)
        seen.append(set(carried))
    return carried["output"], seen


def test_every_cut_gives_the_same_bits():
    model = build_unet(SMALL, seed=1).eval()
    source = image(2, 2, 16, 16)
    whole, stages = model(source), len(model.stages())
    for cut in range(1, stages):
        assert torch.equal(cut_run(model, [cut], source)[0], whole), f"cut at {cut}"
    assert torch.equal(cut_run(model, list(range(1, stages)), source)[0], whole)


def test_over_each_cut_go_the_features_and_the_skips_still_needed():
    model = build_unet(SMALL, seed=1)
    _, carried = cut_run(model, [1, 2, 3, 4, 5], image(1, 2, 16, 16))
    assert list(model.stages()) == [
        "encoder_0",
        "encoder_1",
        "bottleneck",
        "decoder_1",
        "decoder_0",
        "output",
    ]
    assert carried == [
        {"features"},
        {"features", "skip_0"},
        {"features", "skip_0", "skip_1"},
        {"features", "skip_0"},
        {"features"},
        {"output"},
    ]


def test_gradients_pass_over_a_cut_through_features_and_skips():
    model = build_unet(SMALL, seed=1)
    source, names = image(1, 2, 16, 16), list(model.stages())
    model(source).square().mean().backward()
    whole = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    sent = model.run(names[:3], {"source": source})
    received = {name: tensor.detach().requires_grad_() for name, tensor in sent.items()}
    model.run(names[3:], received)["output"].square().mean().backward()
    torch.autograd.backward(list(sent.values()), [t.grad for t in received.values()])
    again = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    assert len(whole) == len(again) == len(list(model.parameters()))
    assert all(torch.equal(again[name], gradient) for name, gradient in whole.items())


def test_stages_own_every_parameter_once():
    model = build_unet(SMALL, seed=1)
    owners = [
        [stage for stage, prefix in model.stages().items() if name.startswith(prefix)]
        for name in model.state_dict()
    ]
    assert all(len(found) == 1 for found in owners)


@pytest.mark.parametrize("dims", [2, 3])
def test_a_batch_norms_tensors_are_known_by_name(dims: int):
    shape = UNetShape(1, 1, (2, 4), dims=dims, norm="batch")
    names = batch_norm_names(build_unet(shape, seed=1))
    assert sum(name.endswith("running_mean") for name in names) == 6
    assert all(".adn.N." in name for name in names)


def test_the_same_seed_builds_the_same_bits_and_leaves_the_global_generator_alone():
    state = torch.get_rng_state()
    first, again, other = (digest(build_unet(SMALL, seed=s).state_dict()) for s in (1, 1, 2))
    assert first == again != other
    assert torch.equal(torch.get_rng_state(), state)


def test_a_volume_no_larger_than_a_patch_is_predicted_at_once():
    model = build_unet(UNetShape(1, 2, (2, 4), dims=3), seed=1).eval()
    volume = image(1, 1, 4, 8, 8)
    with torch.no_grad():
        torch.testing.assert_close(slid(model, volume, (4, 8, 8), at_once=2), model(volume))
        assert slid(model, volume, (2, 4, 4), at_once=2).shape == (1, 2, 4, 8, 8)
