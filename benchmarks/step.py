"""How fast one full-size adversarial training step is, against plain PyTorch on the same networks.

Ours: the library's networks and precision, fused Adam. Plain: eager float32 with
`nn.InstanceNorm2d`, `nn.Dropout` and the personalisation block as written in the paper, and unfused
Adam. Both start from equal weights and share one loss, which for neither computes the critic's
weight gradients in the generator's step. Runs alternate in one process; the figures are medians.
"""

import argparse
import copy
import json
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from grandrounds.core.device import autocast, choose_precision
from grandrounds.models.discriminator import build_discriminator, frozen
from grandrounds.models.generator import Generator, GeneratorShape, build_generator
from grandrounds.models.personalisation import PersonalBlock

CPU = torch.device("cpu")
CODE_SIZE = 12
SIZE = 256


@dataclass(frozen=True)
class Contender:
    """Everything that one way of taking a step needs."""

    generator: Callable[[Tensor, Tensor], Tensor]
    critic: Callable[[Tensor], Tensor]
    weights: tuple[nn.Module, nn.Module]  # the modules that the optimisers step
    optimizers: tuple[torch.optim.Optimizer, torch.optim.Optimizer]
    dtype: torch.dtype


@dataclass(frozen=True)
class Batch:
    source: Tensor
    target: Tensor
    code: Tensor


class PlainGenerator(nn.Module):
    """The generator in ordinary modules; parameters in the same order as `Generator` has them."""

    def __init__(self, twin: Generator) -> None:
        super().__init__()
        width, blocks = twin.shape.width, twin.shape.blocks
        self.stages = nn.ModuleList(
            [
                nn.Sequential(
                    nn.ReflectionPad2d(3), *_plain_stage(nn.Conv2d(1, width, 7, bias=False))
                ),
                _down(width),
                _down(2 * width),
                *(PlainResidual(4 * width) for _ in range(blocks)),
                _up(4 * width),
                _up(2 * width),
                nn.Sequential(nn.ReflectionPad2d(3), nn.Conv2d(width, 1, 7), nn.Tanh()),
            ]
        )
        latent = twin.shape.latent
        sizes = [CODE_SIZE, *[latent] * twin.shape.mapper_layers]
        layers = [nn.Linear(a, b) for a, b in pairwise(sizes)]
        self.mapper = nn.Sequential(*(m for layer in layers for m in (layer, nn.LeakyReLU(0.2))))
        channels = twin.shape.stage_channels
        self.personal = nn.ModuleList(PlainPersonal(latent, c) for c in channels)

    def forward(self, source: Tensor, code: Tensor) -> Tensor:
        style = self.mapper(code)
        *stages, to_image = self.stages
        features = source
        for stage, block in zip(stages, self.personal, strict=True):
            features = block(stage(features), style)
        return to_image(features)


class PlainResidual(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.path = nn.Sequential(
            nn.ReflectionPad2d(1),
            *_plain_stage(nn.Conv2d(channels, channels, 3, bias=False)),
            nn.Dropout(0.5),
            nn.ReflectionPad2d(1),
            nn.Conv2d(channels, channels, 3, bias=False),
            nn.InstanceNorm2d(channels, affine=True),
        )

    def forward(self, features: Tensor) -> Tensor:
        return features + self.path(features)


class PlainPersonal(nn.Module):
    def __init__(self, latent: int, channels: int) -> None:
        super().__init__()
        self.norm = nn.InstanceNorm2d(channels)
        self.heads = PersonalBlock(latent, channels, equalised=False)

    def forward(self, features: Tensor, style: Tensor) -> Tensor:
        scale, shift = self.heads.affine(style)[:, :, None, None].chunk(2, dim=1)
        weight = self.heads.channel_weights(style)[:, :, None, None]
        return weight * (self.norm(features) * (1 + scale) + shift)


def _plain_stage(convolution: nn.Conv2d | nn.ConvTranspose2d) -> list[nn.Module]:
    norm = nn.InstanceNorm2d(convolution.out_channels, affine=True)
    return [convolution, norm, nn.ReLU(inplace=True)]


def _down(width: int) -> nn.Sequential:
    return nn.Sequential(*_plain_stage(nn.Conv2d(width, 2 * width, 3, 2, 1, bias=False)))


def _up(width: int) -> nn.Sequential:
    convolution = nn.ConvTranspose2d(width, width // 2, 3, 2, 1, 1, bias=False)
    return nn.Sequential(*_plain_stage(convolution))


def _plain_critic() -> nn.Sequential:
    widths = [64, 128, 256, 512]
    layers: list[nn.Module] = [nn.Conv2d(2, 64, 4, 2, 1), nn.LeakyReLU(0.2, inplace=True)]
    for inputs, outputs in pairwise(widths):
        stride = 1 if outputs == widths[-1] else 2
        layers += [
            nn.Conv2d(inputs, outputs, 4, stride, 1, bias=False),
            nn.InstanceNorm2d(outputs, affine=True),
            nn.LeakyReLU(0.2, inplace=True),
        ]
    return nn.Sequential(*layers, nn.Conv2d(512, 1, 4, 1, 1))


def _copy_weights(plain: nn.Module, ours: nn.Module) -> nn.Module:
    with torch.no_grad():
        for mine, theirs in zip(plain.parameters(), ours.parameters(), strict=True):
            mine.copy_(theirs)
    return plain


def training_step(contender: Contender, batch: Batch) -> None:
    """One step of critic and generator, least squares beside 100 times L1. Dalmaz et al. 2024."""
    generator_step, critic_step = contender.optimizers
    with autocast(CPU, contender.dtype):
        fake = contender.generator(batch.source, batch.code)
        on_fake = contender.critic(torch.cat([batch.source, fake.detach()], 1))
        on_real = contender.critic(torch.cat([batch.source, batch.target], 1))
    _descend(critic_step, 0.5 * (on_fake.square().mean() + (on_real - 1).square().mean()))
    with frozen(contender.weights[1]), autocast(CPU, contender.dtype):
        judged = contender.critic(torch.cat([batch.source, fake], 1))
    distance = (fake - batch.target).abs().mean()
    _descend(generator_step, (judged - 1).square().mean() + 100 * distance)


def _descend(optimizer: torch.optim.Optimizer, loss: Tensor) -> None:
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()


def our_contender(*, compiled: bool) -> Contender:
    generator = build_generator(GeneratorShape(CODE_SIZE), seed=0)
    critic = build_discriminator(seed=1)
    adam = partial(torch.optim.Adam, lr=2e-4, betas=(0.5, 0.999), fused=True)
    return Contender(
        torch.compile(generator) if compiled else generator,
        torch.compile(critic) if compiled else critic,
        (generator, critic),
        (adam(generator.parameters()), adam(critic.parameters())),
        choose_precision("auto", CPU),
    )


def _plain() -> Contender:
    twin = build_generator(GeneratorShape(CODE_SIZE), seed=0)
    generator = _copy_weights(PlainGenerator(twin), twin)
    critic = _copy_weights(_plain_critic(), build_discriminator(seed=1))
    adam = partial(torch.optim.Adam, lr=2e-4, betas=(0.5, 0.999))
    optimizers = (adam(generator.parameters()), adam(critic.parameters()))
    return Contender(generator, critic, (generator, critic), optimizers, torch.float32)


def largest_difference(ours: Contender, plain: Contender, batch: Batch) -> float:
    """Compare the two eval-mode images of a corner, in float64: equal networks, to rounding."""
    corner = batch.source[..., :64, :64].double()
    with torch.no_grad():
        images = [
            copy.deepcopy(contender.weights[0]).double().eval()(corner, batch.code.double())
            for contender in (ours, plain)
        ]
    return (images[0] - images[1]).abs().max().item()


def medians(steps: Mapping[str, Callable[[], object]], repeats: int) -> dict[str, float]:
    """Time the steps in turns and give each one's median seconds; first runs do not count."""
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for repeat in range(repeats + 2):
        for name, step in steps.items():
            start = time.perf_counter()
            step()
            if repeat >= 2:
                seconds[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in seconds.items()}


def matrix_peak() -> float:
    """Measure the most bf16 operations a second in matrix products, over a few sizes."""
    return max(_product_rate(size) for size in (1024, 2048, 4096))


def _product_rate(size: int) -> float:
    matrix = torch.randn(size, size, dtype=torch.bfloat16)
    seconds = medians({"product": lambda: torch.mm(matrix, matrix)}, 8)["product"]
    return 2 * size**3 / seconds


def count_flops(contender: Contender, batch: Batch) -> int:
    """Count the operations of matrix products and convolutions in one step."""
    with FlopCounterMode(display=False) as counter:
        training_step(contender, batch)
    return counter.get_total_flops()


def measure(repeats: int, compiled: bool) -> dict[str, float | None]:
    generator = torch.Generator().manual_seed(0)
    image = partial(torch.rand, 1, 1, SIZE, SIZE, generator=generator)
    batch = Batch(image(), image(), torch.eye(CODE_SIZE)[:1])
    plain, ours = _plain(), our_contender(compiled=False)
    difference = largest_difference(ours, plain, batch)
    contenders = {"plain": plain, "ours": ours}
    if compiled:
        contenders["compiled"] = our_contender(compiled=True)
    flops = count_flops(ours, batch)
    steps = {name: partial(training_step, one, batch) for name, one in contenders.items()}
    seconds = medians(steps, repeats)
    best, peak = min(seconds.values()), matrix_peak()
    return {
        "speedup": seconds["plain"] / seconds["ours"],
        "speedup_compiled": seconds["plain"] / seconds["compiled"] if compiled else None,
        "peak_fraction": flops / best / peak,
        **{f"{name}_seconds": value for name, value in seconds.items()},
        "gigaflop": flops / 1e9,
        "peak_gigaflops": peak / 1e9,
        "largest_difference": difference,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true", help="print the ratios as one JSON object")
    parser.add_argument("--compile", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--repeats", type=int, default=7)
    options = parser.parse_args()
    found = measure(options.repeats, options.compile)
    if options.json:
        ratios = ("speedup", "speedup_compiled", "peak_fraction")
        print(json.dumps({name: found[name] for name in ratios}))
        return
    print(table(found))


def table(found: Mapping[str, float | None]) -> str:
    """Say what was compared with what."""
    lines = [
        f"One training step of generator and critic: {SIZE}x{SIZE}, batch 1, width 64, "
        f"{torch.get_num_threads()} threads, {found['gigaflop']:.0f} GFLOP.",
        f"The networks differ by at most {found['largest_difference']:.0e} in float64.",
        f"{'plain eager float32':34}{found['plain_seconds']:8.3f} s",
        f"{'ours, eager, ' + _precision_name():34}{found['ours_seconds']:8.3f} s"
        f"{found['speedup']:8.2f} times as fast",
    ]
    if found["speedup_compiled"] is not None:
        lines.append(
            f"{'ours, compiled':34}{found['compiled_seconds']:8.3f} s"
            f"{found['speedup_compiled']:8.2f} times as fast"
        )
    peak = f"{found['peak_gigaflops']:.0f} GFLOP/s of bf16 matrix products"
    return "\n".join([*lines, f"The best reaches {found['peak_fraction']:.0%} of {peak}."])


def _precision_name() -> str:
    return str(choose_precision("auto", CPU)).removeprefix("torch.")


if __name__ == "__main__":
    main()
