"""The update of one image in a small U-Net of the house, as it is and protected, is attacked."""

from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

from grandrounds.audit.inversion import (
    Reconstruction,
    Search,
    attacked,
    image_prior,
    update_distance,
)
from grandrounds.audit.traces import noise_like
from grandrounds.data.simulation.simulate import simulate_session
from grandrounds.models.translation_unet import TranslationUNetShape, build_translation_unet
from grandrounds.study.file import read_study

ROOT = Path(__file__).parents[2]
OTHERS, SLICES = 36, 4  # patients of the attacker, and slices of each
SEARCH = Search(steps=100)
CODE = torch.zeros(1, 0)


@cache
def pairs_of_patients() -> Tensor:
    """T1w and T2w of two patients, one slice each, then of the attacker's own, four each."""
    study = read_study(ROOT / "studies" / "tiny.toml", ())
    scanner = study.site[0].scanner
    found = [
        simulate_session(5, "inverted", f"sub-{n:03d}", scanner, study.elements, slices=SLICES)
        for n in range(OTHERS + 2)
    ]
    slices = [torch.from_numpy(each.images[:, :2].copy()) for each in found]
    pairs = torch.cat([*(each[SLICES // 2 :][:1] for each in slices[:2]), *slices[2:]])
    return pairs * 2 - 1


def protected(update: Sequence[Tensor], *, clip: float, noise: float, draw: int) -> list[Tensor]:
    """Clip an update to a norm, and add Gaussian noise of `noise` times that to each value."""
    norm = torch.cat([each.flatten() for each in update]).norm()
    scale = min(1.0, clip / float(norm))
    source = torch.Generator().manual_seed(draw)
    return [
        scale * each + noise * clip * torch.randn(each.shape, generator=source) for each in update
    ]


def attack(*, noise: float, patient: int = 0, draw: int = 1) -> Reconstruction:
    """Attack the gradient of one image in a small U-Net of the house, trained by the L1 loss."""
    pairs = pairs_of_patients()
    true, another, others = pairs[patient], pairs[1 - patient], pairs[2:]
    network = build_translation_unet(TranslationUNetShape(width=8, levels=1), seed=3)
    weights = list(network.parameters())

    def gradient(images: Tensor, soft: float, *, create_graph: bool = False) -> list[Tensor]:
        error = network(images[None, :1], CODE) - images[None, 1:]
        loss = (error.square() + soft**2).sqrt().mean()
        return list(torch.autograd.grad(loss, weights, create_graph=create_graph))

    def sought(observed: Sequence[Tensor]) -> Callable[[Tensor], Tensor]:
        return lambda images: update_distance(gradient(images, 0.05, create_graph=True), observed)

    sent = gradient(true, 1e-8)
    if noise:
        sent = protected(sent, clip=1.0, noise=noise, draw=draw)
    objectives = {
        "": sought(sent),
        "noise": sought(noise_like(sent, 0)),
        "another": sought(gradient(another, 1e-8)),
    }
    prior = image_prior(others, SEARCH.components)
    return attacked(objectives, true[None], prior, SEARCH)
