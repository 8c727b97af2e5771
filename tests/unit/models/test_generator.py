import math
from dataclasses import replace
from itertools import combinations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from grandrounds.models.discriminator import build_discriminator, frozen
from grandrounds.models.generator import (
    BlockPlace,
    Generator,
    GeneratorShape,
    build_generator,
)
from grandrounds.models.layers import Dropout, Padding, ResidualBlock
from grandrounds.models.norms import batch_norm_names
from grandrounds.models.personalisation import EqualisedLinear, Mapper, PersonalBlock

CODES = torch.cat([torch.eye(4).repeat_interleave(2, 0), torch.eye(8)], dim=1)
SMALL = GeneratorShape(code_size=12, width=8, blocks=3, latent=32)
PLACES: tuple[BlockPlace, ...] = ("after", "branch")
both_places = pytest.mark.parametrize("place", PLACES)


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


def plain_personalisation(features: Tensor, style: Tensor, block: PersonalBlock) -> Tensor:
    """The block as the paper writes it, step by step."""
    scale, shift = block.affine(style)[:, :, None, None].chunk(2, dim=1)
    weight = block.channel_weights(style)[:, :, None, None]
    return weight * (functional.instance_norm(features) * (1 + scale) + shift)


@pytest.fixture(scope="module")
def full() -> Generator:
    return build_generator(GeneratorShape(code_size=12), seed=0)


def test_full_model_has_the_published_number_of_parameters(full: Generator):
    assert size(full) == 15_986_817
    assert size(full.mapper) == 1_319_936
    assert size(full.personal) == 3_296_000
    assert size(full) - size(full.mapper) - size(full.personal) == 11_370_881
    assert sum(1 for _ in full.buffers()) == 0


def test_every_stage_has_the_published_number_of_parameters(full: Generator):
    bottleneck = [*full.bottleneck_early, *full.bottleneck_late]
    assert [size(stage) for stage in full.encoder] == [3_264, 73_984, 295_424]
    assert [size(stage) for stage in bottleneck] == [1_180_672] * 9
    assert [size(stage) for stage in full.decoder] == [295_168, 73_856, 3_137]


def test_every_personalisation_block_has_the_published_number_of_parameters(full: Generator):
    by_channels = {64: 70_272, 128: 141_568, 256: 287_232}
    channels = [64, 128, *[256] * 10, 128, 64]
    assert [size(block) for block in full.personal] == [by_channels[c] for c in channels]


def test_shared_part_of_the_published_split_has_its_number_of_parameters(full: Generator):
    shared = ("mapper.", "bottleneck_late.", "decoder.")
    named = full.named_parameters()
    assert sum(p.numel() for name, p in named if name.startswith(shared)) == 6_414_785


def test_batch_norm_keeps_the_parameters_and_adds_buffers():
    model = build_generator(GeneratorShape(code_size=12, norm="batch"), seed=0)
    assert size(model) == 15_986_817
    counters = sum(1 for name in model.state_dict() if name.endswith("num_batches_tracked"))
    numbers = sum(tensor.numel() for tensor in model.state_dict().values()) - counters
    assert numbers == 15_997_313


def test_full_critic_has_the_published_number_of_parameters_and_map():
    critic = build_discriminator(seed=0)
    assert size(critic) == 2_764_609
    assert critic(noise(1, 2, 256, 256)).shape == (1, 1, 30, 30)


def test_plain_generator_is_the_backbone_alone():
    model = build_generator(GeneratorShape(code_size=12, personalised=False), seed=0)
    assert size(model) == 11_370_881
    assert {name.split(".")[0] for name in model.state_dict()} == {
        "encoder", "bottleneck_early", "bottleneck_late", "decoder"
    }  # fmt: skip


@pytest.mark.parametrize(("blocks", "early"), [(9, 5), (4, 2), (3, 2), (1, 1)])
def test_bottleneck_is_split_at_five_ninths(blocks: int, early: int):
    shape = GeneratorShape(code_size=3, width=4, blocks=blocks, latent=8)
    model = build_generator(shape, seed=0)
    assert len(model.bottleneck_early) == early
    assert len(model.bottleneck_early) + len(model.bottleneck_late) == blocks
    assert len(model.personal) == blocks + 5


def test_every_two_codes_have_different_styles_and_images():
    model = build_generator(SMALL, seed=0).eval()
    assert model.mapper is not None
    with torch.no_grad():
        styles = model.mapper(CODES)
        images = model(noise(1, 1, 32, 32).expand(len(CODES), -1, -1, -1), CODES)
    for a, b in combinations(range(len(CODES)), 2):
        assert (styles[a] - styles[b]).abs().mean() > 0.01
        assert (images[a] - images[b]).abs().max() > 1e-4


def test_no_personalisation_block_starts_with_all_channel_weights_at_a_half(full: Generator):
    assert full.mapper is not None
    styles = full.mapper(CODES)
    for block in full.personal:
        assert isinstance(block, PersonalBlock)
        assert not torch.any(torch.all(block.channel_weights(styles) == 0.5, dim=1))


@pytest.mark.slow
@pytest.mark.parametrize("equalised", [False, True])
def test_every_mapper_layer_gets_a_gradient(equalised: bool):
    shape = GeneratorShape(code_size=12, width=8, blocks=3, latent=32, equalised=equalised)
    model = build_generator(shape, seed=0)
    (model(noise(1, 1, 32, 32), CODES[:1]) - 0.3).abs().mean().backward()
    assert model.mapper is not None
    for layer in model.mapper.layers:
        gradient = layer.get_parameter("weight").grad
        assert gradient is not None
        assert gradient.norm() > 1e-8


@pytest.mark.slow
def test_two_tasks_told_apart_by_the_code_only_are_learned():
    model = build_generator(GeneratorShape(code_size=2, width=16, blocks=3, latent=512), seed=0)
    image = torch.rand(1, 1, 32, 32, generator=torch.Generator().manual_seed(1)) * 2 - 1
    sources, targets = image.repeat(2, 1, 1, 1), torch.cat([0.8 * image.flip(2), -0.8 * image])
    adam = torch.optim.Adam(model.parameters(), lr=2e-4, betas=(0.5, 0.999), fused=True)
    for _ in range(200):
        adam.zero_grad()
        (model(sources, torch.eye(2)) - targets).abs().mean().backward()
        adam.step()
    with torch.no_grad():
        made = model.eval()(sources, torch.eye(2))
    own = (made - targets).abs().mean(dim=(1, 2, 3))
    other = (made - targets.flip(0)).abs().mean(dim=(1, 2, 3))
    assert torch.all(own < 0.5 * other)


@both_places
@pytest.mark.parametrize("padding", ["reflect", "zero"])
def test_a_batch_of_mixed_codes_equals_its_samples_one_by_one(padding: Padding, place: BlockPlace):
    model = build_generator(replace(SMALL, padding=padding, block_place=place), seed=0).eval()
    sources, codes = noise(3, 1, 32, 24), CODES[[0, 3, 7]]
    with torch.no_grad():
        together = model(sources, codes)
        alone = [model(sources[i : i + 1], codes[i : i + 1]) for i in range(3)]
    torch.testing.assert_close(together, torch.cat(alone))


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("batch", [1, 3])
def test_folded_personalisation_equals_the_plain_form(layout: torch.memory_format, batch: int):
    torch.manual_seed(0)
    block = PersonalBlock(16, 8, equalised=False)
    outcomes: list[list[Tensor]] = []
    for folded in (True, False):
        features = noise(batch, 8, 6, 4).contiguous(memory_format=layout).requires_grad_()
        style = noise(batch, 16, seed=1).requires_grad_()
        out = (
            block(style).apply(features)
            if folded
            else plain_personalisation(features, style, block)
        )
        inputs = [features, style, *block.parameters()]
        outcomes.append([out, *torch.autograd.grad((out * noise(batch, 8, 6, 4)).sum(), inputs)])
    for folded, plain in zip(*outcomes, strict=True):
        torch.testing.assert_close(folded, plain, atol=2e-5, rtol=2e-5)


def styles_of(model: Generator) -> Tensor:
    assert model.mapper is not None
    return model.mapper(CODES)


def test_without_channel_weights_a_block_can_do_all_that_it_does_with_them():
    """One linear layer meets any scale and shift of as many codes as it has inputs, and a bias."""
    model = build_generator(SMALL, seed=0)
    with torch.no_grad():
        styles = styles_of(model).double()
        weighing = PersonalBlock(32, 8, equalised=False).double()
        wanted = weighing(styles)
        bare = PersonalBlock(32, 8, equalised=False, weighs=False).double()
        values = torch.cat([wanted.scale - 1, wanted.shift], dim=1)
        bare.get_parameter("affine.bias").zero_()
        bare.get_parameter("affine.weight").copy_((torch.linalg.pinv(styles) @ values).T)
        found = bare(styles)
    assert wanted.scale.std() > 0.1
    torch.testing.assert_close(found.scale, wanted.scale)
    torch.testing.assert_close(found.shift, wanted.shift)


def through_the_bottleneck(model: Generator, source: Tensor) -> tuple[Tensor, Tensor]:
    """What enters the bottleneck of an image and what leaves it."""
    names = list(model.stages())
    first, behind = names.index("bottleneck_early.0"), names.index("decoder.0")
    given = {"source": source} | ({"code": CODES[: len(source)]} if model.mapper else {})
    with torch.no_grad():
        entered = model.run(names[:first], given)
        return entered["features"], model.run(names[first:behind], entered)["features"]


def silence_the_bottleneck(model: Generator) -> None:
    """Let its personalisation blocks multiply what they are given by zero."""
    for block in model.personal[3 : 3 + model.shape.blocks]:
        nn.init.zeros_(block.get_parameter("affine.weight"))
        bias = block.get_parameter("affine.bias").detach()
        bias[: len(bias) // 2] = -1


@both_places
def test_a_silent_block_in_the_branch_leaves_the_bottleneck_s_input_as_it_is(place: BlockPlace):
    model = build_generator(replace(SMALL, block_place=place), seed=0).eval()
    silence_the_bottleneck(model)
    entered, left = through_the_bottleneck(model, noise(2, 1, 32, 32))
    assert entered.abs().max() > 0
    assert torch.equal(left, entered if place == "branch" else torch.zeros_like(entered))


def test_in_the_branch_a_block_personalises_what_is_added_and_nothing_else():
    model = build_generator(replace(SMALL, blocks=1, block_place="branch"), seed=0).eval()
    entered, left = through_the_bottleneck(model, noise(2, 1, 32, 32))
    stage, block = model.bottleneck_early[0], model.personal[3]
    assert isinstance(stage, ResidualBlock)
    assert isinstance(block, PersonalBlock)
    with torch.no_grad():
        added = plain_personalisation(stage.branch(entered), styles_of(model)[:2], block)
    torch.testing.assert_close(left, entered + added)


COSINES = {
    "no blocks": (replace(SMALL, personalised=False), 0.33),
    "after the sum, scale and shift": (replace(SMALL, channel_weights=False), 0.14),
    "after the sum": (SMALL, 0.02),
    "in the branch, scale and shift": (
        replace(SMALL, channel_weights=False, block_place="branch"),
        0.45,
    ),
    "in the branch": (replace(SMALL, block_place="branch"), 0.46),
}


@pytest.mark.parametrize(("shape", "cosine"), COSINES.values(), ids=COSINES)
def test_how_much_of_its_input_a_bottleneck_passes_on_at_the_start(
    shape: GeneratorShape, cosine: float
):
    """The cosine between input and output of the bottleneck of the small network."""
    small = replace(shape, width=16, blocks=4, latent=128, padding="zero", dropout=0.0)
    pairs = [
        through_the_bottleneck(build_generator(small, seed=seed), noise(4, 1, 32, 32))
        for seed in range(2)
    ]
    cosines = [functional.cosine_similarity(a.flatten(1), b.flatten(1)).mean() for a, b in pairs]
    assert torch.stack(cosines).mean().item() == pytest.approx(cosine, abs=0.04)


def test_both_places_have_the_same_weights_and_make_other_images():
    after, branch = (build_generator(replace(SMALL, block_place=p), seed=0) for p in PLACES)
    assert list(after.state_dict()) == list(branch.state_dict())
    assert after.stages() == branch.stages()
    branch.load_state_dict(after.state_dict())
    with torch.no_grad():
        images = [m.eval()(noise(1, 1, 32, 32), CODES[:1]) for m in (after, branch)]
    assert (images[0] - images[1]).abs().max() > 0.01


def test_a_plain_generator_has_no_blocks_to_place():
    plain = replace(SMALL, personalised=False)
    images = [
        build_generator(replace(plain, block_place=place), seed=0).eval()(
            noise(1, 1, 32, 32), CODES[:1]
        )
        for place in PLACES
    ]
    assert torch.equal(*images)


@both_places
def test_stage_by_stage_a_generator_makes_the_same_image(place: BlockPlace):
    model = build_generator(replace(SMALL, block_place=place), seed=0).eval()
    source = noise(2, 1, 32, 32)
    carried = {"source": source, "code": CODES[:2]}
    with torch.no_grad():
        for stage in model.stages():
            carried |= model.run((stage,), carried)
            if stage != "mapper":
                carried.pop("source", None)
        assert torch.equal(carried["output"], model(source, CODES[:2]))


@both_places
def test_gradients_reach_every_convolution_block_and_layer_of_the_mapper(place: BlockPlace):
    learning = gradients_of(replace(SMALL, block_place=place))
    ends = ("convolution.weight", "affine.weight", "affine.bias")
    weights = [n for n in learning if n.endswith(ends) or n.startswith("mapper.")]
    assert len(weights) == 3 + 3 * 2 + 2 + 2 * 8 + 2 * 6
    assert min(learning[name] for name in weights) > 1e-2


def test_in_the_branch_the_block_undoes_the_scale_of_the_norm_before_it():
    """After the sum it undoes the shift alone."""
    after, branch = (gradients_of(replace(SMALL, block_place=place)) for place in PLACES)
    for name in ("bottleneck_early.0.norm.weight", "bottleneck_late.0.norm.weight"):
        assert after[name] > 1
        assert branch[name] < 1e-3


def gradients_of(shape: GeneratorShape) -> dict[str, float]:
    """The norm of each weight's gradient at the start."""
    model = build_generator(shape, seed=0)
    (model(noise(2, 1, 32, 32), CODES[:2]) * noise(2, 1, 32, 32, seed=1)).sum().backward()
    named = model.named_parameters()
    return {name: 0.0 if p.grad is None else p.grad.norm().item() for name, p in named}


def test_equalised_layers_start_as_spread_as_plain_ones():
    torch.manual_seed(0)
    codes = CODES[:4]
    spreads = [
        Mapper(12, 512, layers=6, equalised=equalised)(codes).abs().mean().item()
        for equalised in (False, True)
    ]
    assert spreads == pytest.approx([0.35, 0.35], abs=0.12)


def test_equalised_layer_stores_weights_divided_by_the_multiplier():
    torch.manual_seed(0)
    layer = EqualisedLinear(512, 512, gain=math.sqrt(2), multiplier=0.01)
    assert layer.weight.std().item() == pytest.approx(100, rel=0.01)
    effective = layer(torch.eye(512))
    assert effective.std().item() == pytest.approx(math.sqrt(2 / 512), rel=0.01)


def test_first_weights_have_the_published_spread():
    model = build_generator(GeneratorShape(code_size=12, blocks=1), seed=0)
    weights = model.state_dict()
    assert weights["bottleneck_early.0.convolution.weight"].std() == pytest.approx(0.02, rel=0.01)
    assert weights["bottleneck_early.0.norm.weight"].mean() == pytest.approx(1, abs=0.01)
    assert weights["bottleneck_early.0.norm.bias"].abs().max() == 0
    assert weights["personal.0.affine.weight"].std() == pytest.approx(512**-0.5, rel=0.01)
    assert weights["mapper.layers.1.weight"].std() == pytest.approx(math.sqrt(2 / 512), rel=0.01)
    assert weights["mapper.layers.1.bias"].abs().max() == 0


def test_equal_seeds_build_equal_bits_and_leave_the_global_generator_alone():
    torch.manual_seed(5)
    before = torch.get_rng_state()
    first, again, other = (build_generator(SMALL, seed=seed).state_dict() for seed in (1, 1, 2))
    critics = [build_discriminator(8, seed=1).state_dict() for _ in range(2)]
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert all(torch.equal(critics[0][name], critics[1][name]) for name in critics[0])
    assert not torch.equal(first["mapper.layers.0.weight"], other["mapper.layers.0.weight"])


@both_places
@pytest.mark.parametrize(("height", "width"), [(12, 12), (16, 36), (64, 64)])
def test_sizes_that_are_multiples_of_four_come_back_as_images(
    height: int, width: int, place: BlockPlace
):
    model = build_generator(replace(SMALL, block_place=place), seed=0)
    image = model(noise(2, 1, height, width), CODES[:2])
    assert image.shape == (2, 1, height, width)
    assert image.dtype == torch.float32
    assert image.abs().max() <= 1


@pytest.mark.parametrize(
    ("pixels", "layers", "patches"), [(64, 3, 6), (128, 3, 14), (64, 2, 14), (64, 1, 30)]
)
def test_critic_judges_small_images(pixels: int, layers: int, patches: int):
    critic = build_discriminator(8, layers=layers, seed=0)
    assert critic(noise(2, 2, pixels, pixels)).shape == (2, 1, patches, patches)


def test_batch_norm_names_are_those_of_batch_norms_only():
    assert batch_norm_names(build_generator(SMALL, seed=0)) == frozenset()
    critic = build_discriminator(8, norm="batch", seed=0)
    names = batch_norm_names(critic)
    assert len(names) == 3 * 5
    assert "hidden.0.norm.running_mean" in names
    assert "hidden.0.convolution.weight" not in names


def test_a_frozen_critic_passes_gradients_through_and_gets_none():
    critic = build_discriminator(8, seed=0)
    pair = noise(1, 2, 64, 64).requires_grad_()
    with frozen(critic):
        verdict = critic(pair)
    verdict.mean().backward()
    assert pair.grad is not None
    assert all(p.grad is None and p.requires_grad for p in critic.parameters())


def test_dropout_drops_its_share_and_keeps_the_mean():
    torch.manual_seed(0)
    kept = Dropout(0.25)(torch.ones(4, 16, 64, 64))
    assert (kept == 0).float().mean().item() == pytest.approx(0.25, abs=0.005)
    assert kept.max().item() == pytest.approx(4 / 3)


def test_dropout_stops_the_gradient_where_it_dropped():
    torch.manual_seed(0)
    features = noise(2, 3, 8, 8).contiguous(memory_format=torch.channels_last).requires_grad_()
    out = Dropout(0.5)(features)
    out.sum().backward()
    assert features.grad is not None
    assert torch.equal(features.grad == 0, out == 0)
    assert out.stride() == features.stride()


@pytest.mark.parametrize("batch", [1, 2])
def test_dropout_draws_the_same_whatever_the_layout(batch: int):
    features = noise(batch, 3, 8, 8)
    outcomes: list[Tensor] = []
    for layout in (torch.contiguous_format, torch.channels_last):
        torch.manual_seed(0)
        outcomes.append(Dropout(0.5)(features.contiguous(memory_format=layout)))
    assert torch.equal(*outcomes)


def test_dropout_does_nothing_in_evaluation_or_at_rate_zero():
    features = noise(2, 3, 8, 8)
    assert torch.equal(Dropout(0.5).eval()(features), features)
    assert torch.equal(Dropout(0.0)(features), features)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # the compiler uses what torch deprecates
@both_places
def test_compiled_networks_compute_what_eager_ones_do(place: BlockPlace):
    model = build_generator(replace(SMALL, blocks=1, block_place=place), seed=0)
    compiled = torch.compile(model, fullgraph=True)
    source = noise(2, 1, 16, 16)
    images: list[Tensor] = []
    gradients: list[Tensor] = []
    for run in (model, compiled):
        torch.manual_seed(3)
        model.zero_grad()
        images.append(run(source, CODES[:2]))
        images[-1].square().mean().backward()
        gradient = model.get_parameter("encoder.0.convolution.weight").grad
        assert gradient is not None
        gradients.append(gradient.clone())
    torch.testing.assert_close(images[1], images[0], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(gradients[1], gradients[0], atol=1e-4, rtol=1e-3)
