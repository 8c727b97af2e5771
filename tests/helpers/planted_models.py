"""Models that memorised their training patients, and others that never saw them.

A model fills in what its source does not tell: it sees a target in 2 x 2 pixels, and recalls the
training images that look alike in these (Nadaraya 1964, Watson 1964). So it is a planted memory and
not a trained network, which is flagged less often: docs/reference/privacy.md has the numbers. One
that never saw the patients recalls others. Patients are the simulator's, of 16 x 16 pixels.
"""

from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from grandrounds.audit.exchangeability import permutation_p
from grandrounds.audit.membership import Fits
from grandrounds.audit.memorisation import SPACES, CopyTest, copy_test
from grandrounds.core.roc import auc
from grandrounds.data.simulation.simulate import simulate_session
from grandrounds.study.file import read_study

ROOT = Path(__file__).parents[2]
SIDE, SEEN = 16, 2  # pixels of a target, and of what a model sees of it
PATIENTS = 6  # in each of: training, test, training of a model that never saw them
WIDTH = 0.005  # of grey, by which a source must differ to recall another image


@cache
def patients_of_a_simulation(number: int) -> Tensor:
    """Middle slices of T2w, (number, 1, 16, 16) in [0, 1], one a patient."""
    study = read_study(ROOT / "studies" / "tiny.toml", ())
    scanner = study.site[0].scanner
    slices = [
        simulate_session(5, "planted", f"sub-{n:03d}", scanner, study.elements, slices=1).image(
            0, "T2w"
        )
        for n in range(number)
    ]
    images = torch.from_numpy(np.stack(slices))[:, None]
    return nn.functional.interpolate(images, (SIDE, SIDE), mode="area")


def seen(images: Tensor) -> Tensor:
    """What a model is shown of a target, (B, 4)."""
    return nn.functional.adaptive_avg_pool2d(images, SEEN).flatten(1)


def recalled(sources: Tensor, memory: Tensor) -> Tensor:
    """What a memory of images makes of sources, (B, 1, 16, 16): their mean, the alike foremost."""
    alike = -torch.cdist(sources, seen(memory)) / WIDTH
    return torch.tensordot(alike.softmax(1), memory, 1)


@dataclass(frozen=True)
class Planted:
    """A model, the patients of an audit, and who of them trained, as the audit is told."""

    images: Tensor
    made: Tensor
    members: NDArray[np.bool_]

    def copies(self) -> CopyTest:
        """The test for copies, with one image a patient."""
        names = [f"p{n:03d}" for n in range(len(self.images))]
        made = {name: image[None] for name, image in zip(names, self.made, strict=True)}
        real = {name: image[None] for name, image in zip(names, self.images, strict=True)}
        return copy_test(made, real, dict(zip(names, map(bool, self.members), strict=True)))

    def fits(self) -> Fits:
        """The fit of each patient: the negative mean absolute error."""
        errors = (self.made - self.images).abs().flatten(1).mean(1)
        return Fits.of(-errors.double().numpy(), [])


def planted(seed: int, *, saw_them: bool) -> Planted:
    """A model that memorised half of an audit's patients, or one that saw none of them."""
    draw = torch.Generator().manual_seed(seed)
    pool = patients_of_a_simulation(8 * PATIENTS)
    order = torch.randperm(len(pool), generator=draw)[: 3 * PATIENTS]
    inside, outside, elsewhere = pool[order].split(PATIENTS)
    images = torch.cat([inside, outside])
    made = recalled(seen(images), inside if saw_them else elsewhere)
    return Planted(images, made, np.arange(2 * PATIENTS) < PATIENTS)


def operating_curve(number: int) -> dict[str, dict[str, list[float]]]:
    """The p-value, times the number of tests, of each attack on so many models of each kind."""
    curve: dict[str, dict[str, list[float]]] = {"memorised": {}, "never saw them": {}}
    for kind, saw_them in (("memorised", True), ("never saw them", False)):
        for seed in range(number):
            for attack, p in attacked(planted(seed, saw_them=saw_them), seed).items():
                curve[kind].setdefault(attack, []).append(p)
    return curve


def attacked(model: Planted, seed: int) -> dict[str, float]:
    """The smallest p of each attack, times the number of its tests: what a verdict rests on."""
    copies = min(model.copies().p(model.members, seed).values()) * len(SPACES)
    values = model.fits().values
    told = permutation_p(lambda members: auc(values, members), model.members, seed=seed)
    return {"memorisation": copies, "membership": told}
