"""The U-Net of other methods: its published size, its codes, the same bits wherever it is cut."""

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from grandrounds.core.device import autocast
from grandrounds.core.weights import digest
from grandrounds.models.norms import batch_norm_names
from grandrounds.models.translation_unet import (
    AdaptiveNorm,
    PlainInstanceNorm,
    TranslationUNet,
    TranslationUNetShape,
    build_translation_unet,
)

PLAIN = TranslationUNetShape(width=4, levels=3)
CODED = TranslationUNetShape(width=4, levels=3, code_size=2, latent=32)
BATCH_NORM = replace(PLAIN, norm="batch")
CODES = torch.eye(2)


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def size(module: nn.Module | None) -> int:
    assert module is not None
    return sum(parameter.numel() for parameter in module.parameters())


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(
    ("shape", "parameters"),
    [
        (TranslationUNetShape(), 7_756_097),
        (TranslationUNetShape(inputs=2, outputs=2), 7_756_418),
        (TranslationUNetShape(code_size=2), 9_991_235),
        # A scale and a shift: 992 channels down, normalised twice; 480 up, three times.
        (TranslationUNetShape(norm="batch"), 7_756_097 + 2 * (2 * 992 + 3 * 480)),
    ],
)
def test_full_model_has_the_published_number_of_parameters(
    shape: TranslationUNetShape, parameters: int
):
    assert size(build_translation_unet(shape, seed=0)) == parameters


def test_every_group_has_its_number_of_parameters():
    model = build_translation_unet(TranslationUNetShape(code_size=2), seed=0)
    groups: dict[str, int] = {}
    for name, parameter in model.named_parameters():
        group = name.split(".")[0]
        groups[group] = groups.get(group, 0) + parameter.numel()
    assert groups == {
        "encoder": 4_709_664,
        "decoder": 3_046_433,
        "mapper": 264_192,
        "personal": 1_921 * 2 * 513,
    }


def test_adaptive_norms_follow_every_stage_and_the_last_one_is_on_the_image():
    model = build_translation_unet(TranslationUNetShape(code_size=2), seed=0)
    channels = [block.get_parameter("affine.bias").numel() // 2 for block in model.personal]
    assert channels == [32, 64, 128, 256, 512, 256, 256, 128, 128, 64, 64, 32, 1]


def plain_block(source: Tensor, weights: Sequence[Tensor]) -> Tensor:
    for weight in weights:
        convolved = functional.conv2d(source, weight, padding=1)
        source = functional.leaky_relu(functional.instance_norm(convolved), 0.2)
    return source


def adapted(features: Tensor, style: Tensor, norm: nn.Module) -> Tensor:
    """AdaIN as the paper writes it, step by step."""
    scale, shift = norm.get_submodule("affine")(style)[:, :, None, None].chunk(2, dim=1)
    return functional.instance_norm(features) * (1 + scale) + shift


@pytest.mark.parametrize("coded", [False, True])
def test_it_computes_what_the_paper_writes(coded: bool):
    """One level, step by step in plain PyTorch."""
    shape = TranslationUNetShape(width=4, levels=1, code_size=2 if coded else 0, latent=16)
    model, source = build_translation_unet(shape, seed=0).eval(), noise(2, 1, 8, 8)
    weights = [p for name, p in model.named_parameters() if name.endswith("convolution.weight")]
    top, bottom, last = (weights[i : i + 2] for i in (0, 2, 5))

    def modulated(number: int, features: Tensor) -> Tensor:
        if model.mapper is None:
            return features
        return adapted(features, model.mapper(CODES), model.personal[number])

    skip = modulated(0, plain_block(source, top))
    deep = modulated(1, plain_block(functional.avg_pool2d(skip, 2), bottom))
    risen = functional.instance_norm(functional.conv_transpose2d(deep, weights[4], stride=2))
    risen = modulated(2, functional.leaky_relu(risen, 0.2))
    joined = plain_block(torch.cat([risen, skip], 1), last)
    made = functional.conv2d(
        joined, model.get_parameter("decoder.1.1.weight"), model.get_parameter("decoder.1.1.bias")
    )
    torch.testing.assert_close(model(source, CODES), torch.tanh(modulated(3, made)))


def test_two_codes_have_different_styles_and_images():
    model = build_translation_unet(TranslationUNetShape(width=8, code_size=2), seed=0).eval()
    assert model.mapper is not None
    with torch.no_grad():
        styles = model.mapper(CODES)
        images = model(noise(1, 1, 32, 32).expand(2, -1, -1, -1), CODES)
    assert (styles[0] - styles[1]).abs().mean() > 0.01
    assert (images[0] - images[1]).abs().mean() > 0.01


def test_without_codes_the_code_is_ignored():
    model, source = build_translation_unet(PLAIN, seed=0), noise(2, 1, 16, 16)
    assert model.mapper is None
    assert torch.equal(model(source, CODES), model(source, -CODES))


@pytest.mark.parametrize("shape", [CODED, BATCH_NORM])
def test_every_parameter_gets_a_gradient(shape: TranslationUNetShape):
    model = build_translation_unet(shape, seed=0)
    (model(noise(2, 1, 16, 24), CODES) - noise(2, 1, 16, 24, seed=1)).abs().mean().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        if name != "decoder.5.1.bias" or not shape.code_size:  # its AdaIN takes the mean away
            assert parameter.grad.norm() > 1e-8, name


@pytest.mark.parametrize("shape", [PLAIN, CODED])
def test_a_batch_of_mixed_codes_equals_its_samples_one_by_one(shape: TranslationUNetShape):
    model = build_translation_unet(shape, seed=0)
    sources, codes = noise(3, 1, 16, 24), CODES[[0, 1, 0]]
    with torch.no_grad():
        together = model(sources, codes)
        alone = [model(sources[i : i + 1], codes[i : i + 1]) for i in range(3)]
    torch.testing.assert_close(together, torch.cat(alone))


def cut_run(
    model: TranslationUNet, cuts: list[int], source: Tensor
) -> tuple[Tensor, list[set[str]]]:
    """Run the stages in pieces, over cuts that keep no layout; the output, and what crossed."""
    names, carried = list(model.stages()), {"source": source, "code": CODES}
    seen: list[set[str]] = []
    for first, last in pairwise([0, *cuts, len(names)]):
        made = model.run(names[first:last], carried)
        carried = {name: tensor.contiguous() for name, tensor in made.items()}
        seen.append(set(carried))
    return carried["output"], seen


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [PLAIN, CODED, replace(CODED, norm="batch")])
def test_every_cut_gives_the_same_bits(shape: TranslationUNetShape, precision: torch.dtype):
    model, source = build_translation_unet(shape, seed=1).eval(), noise(2, 1, 16, 16)
    with torch.no_grad(), autocast(source.device, precision):
        whole, stages = model(source, CODES), len(model.stages())
        for cut in range(1, stages):
            assert torch.equal(cut_run(model, [cut], source)[0], whole), f"cut at {cut}"
        assert torch.equal(cut_run(model, list(range(1, stages)), source)[0], whole)


def test_over_each_cut_go_the_features_the_style_and_the_skips_still_needed():
    model = build_translation_unet(replace(CODED, levels=2), seed=1)
    stages = ["mapper", *(f"encoder.{n}" for n in range(3)), *(f"decoder.{n}" for n in range(4))]
    assert list(model.stages()) == stages
    _, carried = cut_run(model, list(range(1, len(stages))), noise(2, 1, 16, 16))
    between = {"features", "style"}
    assert carried == [
        {"source", "style"},
        between,
        between | {"skip_0"},
        between | {"skip_0", "skip_1"},
        between | {"skip_0", "skip_1"},
        between | {"skip_0"},
        between | {"skip_0"},
        {"output"},
    ]


def test_features_and_skips_are_channels_last_even_after_a_cut_that_keeps_no_layout():
    model, names = build_translation_unet(CODED, seed=1), ["mapper", "encoder.0", "encoder.1"]
    first = model.run(names[:2], {"source": noise(2, 1, 16, 16), "code": CODES})
    second = model.run(names[2:], {name: tensor.contiguous() for name, tensor in first.items()})
    for features in (first["features"], second["features"], second["skip_0"]):
        assert features.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("shape", [PLAIN, CODED])
def test_gradients_pass_over_a_cut_through_features_skips_and_style(shape: TranslationUNetShape):
    model = build_translation_unet(shape, seed=1)
    source, names = noise(2, 1, 16, 16), list(model.stages())
    model(source, CODES).square().mean().backward()
    whole = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    sent = model.run(names[:3], {"source": source, "code": CODES})
    received = {name: tensor.detach().requires_grad_() for name, tensor in sent.items()}
    model.run(names[3:], received)["output"].square().mean().backward()
    torch.autograd.backward(list(sent.values()), [t.grad for t in received.values()])
    again = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    assert len(whole) == len(again) == len(list(model.parameters()))
    for name, gradient in whole.items():
        torch.testing.assert_close(again[name], gradient)


@pytest.mark.parametrize("shape", [PLAIN, CODED, BATCH_NORM])
def test_stages_own_every_tensor_once(shape: TranslationUNetShape):
    model = build_translation_unet(shape, seed=1)
    owners = [
        [stage for stage, prefixes in model.stages().items() if name.startswith(prefixes)]
        for name in model.state_dict()
    ]
    assert all(len(found) == 1 for found in owners)


def test_a_batch_norms_tensors_are_known_by_name_and_instance_norms_have_none():
    names = batch_norm_names(build_translation_unet(BATCH_NORM, seed=1))
    assert sum(name.endswith("running_mean") for name in names) == 2 * 4 + 3 * 3
    assert batch_norm_names(build_translation_unet(PLAIN, seed=1)) == frozenset()


def test_the_same_seed_builds_the_same_bits_and_leaves_the_global_generator_alone():
    state = torch.get_rng_state()
    first, again, other = (
        digest(build_translation_unet(CODED, seed=s).state_dict()) for s in (1, 1, 2)
    )
    assert first == again != other
    assert torch.equal(torch.get_rng_state(), state)


def test_first_weights_have_the_published_spread():
    weights = build_translation_unet(TranslationUNetShape(code_size=2), seed=0).state_dict()
    assert weights["encoder.4.1.convolution.weight"].std() == pytest.approx(0.02, rel=0.01)
    assert weights["decoder.0.convolution.weight"].std() == pytest.approx(0.02, rel=0.01)
    assert weights["personal.4.affine.weight"].std() == pytest.approx(512**-0.5, rel=0.01)
    assert weights["mapper.layers.1.weight"].std() == pytest.approx((2 / 512) ** 0.5, rel=0.01)
    assert weights["personal.4.affine.bias"].abs().max() == 0


@pytest.mark.parametrize(("height", "width"), [(8, 16), (32, 24)])
def test_sizes_that_halve_at_every_level_come_back_as_images(height: int, width: int):
    model = build_translation_unet(replace(CODED, inputs=2, outputs=3), seed=0)
    with autocast(torch.device("cpu"), torch.bfloat16):
        image = model(noise(2, 2, height, width), CODES)
    assert image.shape == (2, 3, height, width)
    assert image.dtype == torch.float32
    assert image.abs().max() <= 1


def test_double_precision_stays_double():
    model = build_translation_unet(CODED, seed=0).double()
    image = model(noise(2, 1, 16, 16).double(), CODES.double())
    assert image.dtype == torch.float64
    single = build_translation_unet(CODED, seed=0)(noise(2, 1, 16, 16), CODES)
    torch.testing.assert_close(single, image.float(), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_plain_instance_norm_equals_the_native_function(dtype: torch.dtype):
    features = noise(3, 4, 8, 8).to(dtype).contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(PlainInstanceNorm()(features), functional.instance_norm(features))


def test_an_adaptive_norm_sets_the_mean_and_the_spread_of_a_map():
    """Style (3, 5) through affine scale 2 * 3 and shift 5: mean 5, standard deviation 7."""
    norm = AdaptiveNorm(2, 1)
    norm.affine.weight.data = torch.tensor([[2.0, 0.0], [0.0, 1.0]])
    made = norm(torch.tensor([[3.0, 5.0]])).apply(noise(1, 1, 16, 16))
    assert made.mean().item() == pytest.approx(5, abs=1e-3)
    assert made.std(correction=0).item() == pytest.approx(7, abs=1e-3)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # the compiler uses what torch deprecates
def test_a_compiler_takes_it_whole_and_computes_the_same():
    model, source = build_translation_unet(replace(CODED, levels=1), seed=0), noise(2, 1, 16, 16)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(source, CODES), model(source, CODES))
