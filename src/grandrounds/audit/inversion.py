"""How much of a patient's image can be read out of the update that left the site.

The attacker has the network, all its weights, and images of other patients. It seeks the image
whose gradient points where the update points: the cosine distance and a total variation, as in
Geiping et al. 2020, tensor by tensor, among mixtures of the other patients' principal components,
which take the place of the generative network of Jeon et al. 2021. What all patients have in common
counts for nothing.

Shapes: M, N image, C channel (source and target of synthesis), H, W; K component.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import TypeAlias

import numpy as np
import torch
from torch import Tensor

from grandrounds.report.analysis.audit import AuditedAttack, AuditFigure, AuditVerdict

CLEAR = 0.4  # share of individual detail from which on a reconstruction shows the patient
CLEAR_MARGIN = 0.2  # by which that share must exceed every control's
_SILENT = 1e-4  # of the largest root mean square of an update's tensors
_TINY = 1e-12

Objective: TypeAlias = Callable[
    [Tensor], Tensor
]  # images (C, H, W) to how far their traces are from the true


@dataclass(frozen=True)
class Search:
    """How long an attacker seeks, in steps of Adam, and how smooth it thinks images are."""

    steps: int = 150
    rate: float = 0.1
    smoothness: float = 1e-3
    components: int = 20


@dataclass(frozen=True)
class ImagePrior:
    """Other patients' images: their mean (C, H, W), and components scaled by their deviation."""

    mean: Tensor
    axes: Tensor  # (K, C, H, W)

    def image(self, coefficients_K: Tensor) -> Tensor:
        """Return the mixture with these coefficients, (C, H, W)."""
        return self.mean + (coefficients_K[:, None, None, None] * self.axes).sum(0)


def image_prior(images_NCHW: Tensor, components: int) -> ImagePrior:
    """Return mean and principal components of other patients' images."""
    mean = images_NCHW.mean(0)
    centred = (images_NCHW - mean).flatten(1)
    _, found, vectors = np.linalg.svd(centred.numpy(), full_matrices=False)
    lengths, axes = torch.as_tensor(found), torch.as_tensor(vectors)
    kept = min(components, int((lengths > lengths[0] * 1e-4).sum()))
    scaled = axes[:kept] * lengths[:kept, None] / len(images_NCHW) ** 0.5
    return ImagePrior(mean, scaled.unflatten(1, mean.shape))


def total_variation(images_CHW: Tensor) -> Tensor:
    """Return the mean absolute difference of neighbouring pixels. Rudin et al. 1992."""
    down = (images_CHW[..., 1:, :] - images_CHW[..., :-1, :]).abs().mean()
    return down + (images_CHW[..., 1:] - images_CHW[..., :-1]).abs().mean()


def update_distance(found: Sequence[Tensor | None], observed: Sequence[Tensor]) -> Tensor:
    """Return the mean over tensors of 1 less the cosine between two updates, from 0 to 2.

    Tensors that the observed update leaves as they are do not count: a bias before a norm has no
    gradient but rounding errors, whose direction is chance.
    """
    sizes = [float(other.square().mean().sqrt()) for other in observed]
    silent = _SILENT * max(sizes)
    pairs = [
        (one.flatten(), other.flatten())
        for one, other, size in zip(found, observed, sizes, strict=True)
        if one is not None and size > silent
    ]
    cosines = [_cosine(one, other) for one, other in pairs]
    return 1 - torch.stack(cosines).mean()


def _cosine(one: Tensor, other: Tensor) -> Tensor:
    squares = torch.dot(one, one) * torch.dot(other, other)
    return torch.dot(one, other) / squares.clamp_min(_TINY**2).sqrt()


def feature_distance(found: Sequence[Tensor], observed: Sequence[Tensor]) -> Tensor:
    """Return the mean over tensors of their squared distance, relative to the observed one's."""
    apart = [
        (one - other).square().mean() / other.square().mean().clamp_min(_TINY)
        for one, other in zip(found, observed, strict=True)
    ]
    return torch.stack(apart).mean()


def reconstruct(objective: Objective, prior: ImagePrior, search: Search) -> Tensor:
    """Return the images (C, H, W) among a prior's mixtures that meet an objective best.

    It starts from the mean of the other patients. Kingma and Ba 2015 for the steps.
    """
    coefficients_K = torch.zeros(len(prior.axes), requires_grad=True)
    optimizer = torch.optim.Adam([coefficients_K], lr=search.rate)
    best, lowest = prior.mean, float("inf")
    for step in range(search.steps):
        optimizer.param_groups[0]["lr"] = search.rate * (1 - step / search.steps)
        images_CHW = prior.image(coefficients_K)
        loss = objective(images_CHW) + search.smoothness * total_variation(images_CHW)
        (coefficients_K.grad,) = torch.autograd.grad(loss, [coefficients_K])
        optimizer.step()  # pyright: ignore[reportUnknownMemberType]
        if float(loss.detach()) < lowest:
            best, lowest = images_CHW.detach(), float(loss.detach())
    return best


def detail(found_CHW: Tensor, true_CHW: Tensor, prior: ImagePrior) -> float:
    """Return the correlation of what tells two images from the other patients' mean.

    It is 1 for the true image and 0 for what knows the patient not at all.
    """
    one, other = (found_CHW - prior.mean).flatten(), (true_CHW - prior.mean).flatten()
    return float(_cosine(one, other))


@dataclass(frozen=True)
class Reconstruction:
    """The image (C, H, W) that an attacker sought, and what it made of the patient's trace.

    `detail` is how much individual detail that has; `controls` map what took the place of the trace
    to how much the same attack found then.
    """

    true: Tensor
    found: Tensor
    mean: Tensor
    detail: float
    controls: Mapping[str, float]


def attacked(
    objectives: Mapping[str, Objective], true_MCHW: Tensor, prior: ImagePrior, search: Search
) -> Reconstruction:
    """Attack with each objective, the first being the true trace's, and the others controls.

    What is found counts for the best of the true images, of which a trace may have several.
    """
    found = {name: reconstruct(each, prior, search) for name, each in objectives.items()}
    details = {name: _details(image, true_MCHW, prior) for name, image in found.items()}
    first, *rest = found
    best = int(details[first].argmax())
    return Reconstruction(
        true_MCHW[best],
        found[first],
        prior.mean,
        float(details[first][best]),
        {name: float(details[name].max()) for name in rest},
    )


def _details(found_CHW: Tensor, true_MCHW: Tensor, prior: ImagePrior) -> Tensor:
    return torch.tensor([detail(found_CHW, each, prior) for each in true_MCHW])


def judge_reconstructions(
    title: str,
    found: Sequence[Reconstruction],
    sentences: tuple[str, str],
    remedies: tuple[str, ...],
) -> AuditedAttack:
    """Judge attempts on several patients; `sentences` are for success and for failure.

    An attack succeeds where the median of the details is clear and beats that of each control.
    """
    shown = median([each.detail for each in found])
    controls = {n: median([each.controls[n] for each in found]) for n in found[0].controls}
    clear = shown >= CLEAR and all(shown >= each + CLEAR_MARGIN for each in controls.values())
    verdict: AuditVerdict = "found" if clear else "not found"
    return AuditedAttack(
        title,
        verdict,
        sentences[0 if clear else 1],
        (
            AuditFigure("Individual detail found, median (1: the image; 0: a guess)", shown),
            AuditFigure("Attempts", len(found)),
        ),
        tuple(AuditFigure(f"{name}: individual detail", each) for name, each in controls.items()),
        remedies,
    )
