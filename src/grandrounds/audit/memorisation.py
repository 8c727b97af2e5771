"""Whether synthetic images are nearer to training patients than to patients the model never saw.

The nearest real image of each synthetic one is sought among the training and the test patients. The
synthetic ones are made for people who did not train, and nobody is their own neighbour. Were the
model ignorant of who trained, any other assignment of the patients would be as likely.

Shapes: R synthetic image, N patient of training or test, Q patient with synthetic images (the N
first, then those of neither), H, W; F feature.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from grandrounds.audit.exchangeability import (
    FLAGGED_AT,
    Members,
    enough_patients,
    permutation_p,
    shuffled,
)
from grandrounds.report.analysis.audit import AuditedAttack, AuditFigure, AuditVerdict
from grandrounds.tasks.metrics import WAVELENGTHS, gabor_magnitudes

POOLED_SIDE = 8  # rows and columns of the features' maps
SPACES = ("images", "features")
COPIES = "Memorisation: are synthetic images copies of training images?"
_REMEDIES = (
    "More patients at the site, or fewer rounds and local epochs: stop where validation stops "
    "improving.",
    "A smaller network, or more augmentation and dropout.",
    'Record-level differential privacy ([privacy] kind = "record").',
)


@dataclass(frozen=True)
class Neighbours:
    """How far each synthetic image is from each patient: the distance of the nearest real image.

    `origin` is whose synthetic image a row is: its index among the N patients, or any number from N
    on for a patient of neither split. `apart` is (R, N).
    """

    apart: NDArray[np.float64]
    origin: NDArray[np.int64]

    def gap(self, members_N: Members) -> float:
        """Return how much nearer training images are than test images, relative to the latter.

        Only images made for people outside of training count.
        """
        inside, outside = self._nearest(members_N)
        return float((outside - inside).mean() / max(float(outside.mean()), 1e-12))

    def share(self, members_N: Members) -> float:
        """Return the share of synthetic images whose nearest real image is a training patient's."""
        inside, outside = self._nearest(members_N)
        return float((inside < outside).mean())

    def _nearest(self, members_N: Members) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        trained = np.append(members_N, False)
        asked = ~trained[np.minimum(self.origin, len(members_N))]
        apart_RN = self.apart[asked]
        return apart_RN[:, members_N].min(1), apart_RN[:, ~members_N].min(1)


def neighbours(
    made: Mapping[str, Tensor], real: Mapping[str, Tensor], patients: Sequence[str]
) -> Neighbours:
    """Find the distances of images, or of features, in (R, F) or (R, 1, H, W) for each patient.

    `patients` are those of training and test, in the order of their assignment; `made` has further
    ones after them. Distances are the roots of mean squares.
    """
    others = [name for name in made if name not in patients]
    order = [*patients, *others]
    rows = torch.cat([made[name].flatten(1) for name in order])
    origin = np.repeat(np.arange(len(order)), [len(made[name]) for name in order])
    columns = [_apart(rows, real[name].flatten(1)) for name in patients]
    apart = np.stack(columns, 1)
    own = origin < len(patients)
    apart[np.flatnonzero(own), origin[own]] = np.inf  # nobody is their own neighbour
    return Neighbours(apart, origin)


def _apart(rows_RF: Tensor, images_SF: Tensor) -> NDArray[np.float64]:
    apart = torch.cdist(rows_RF.double(), images_SF.double()).amin(1)
    return (apart / rows_RF.shape[1] ** 0.5).numpy()


def features_of(images_B1HW: Tensor) -> Tensor:
    """Return pooled magnitudes of Gabor responses, (B, F), each wavelength with a mean of 1.

    They belong to no trained network, so that they know no patient.
    """
    maps = [gabor_magnitudes(images_B1HW.double(), length) for length in WAVELENGTHS]
    pooled = [
        torch.nn.functional.adaptive_avg_pool2d(each, POOLED_SIDE).flatten(1) for each in maps
    ]
    return torch.cat([each / each.mean(1, keepdim=True).clamp_min(1e-12) for each in pooled], 1)


@dataclass(frozen=True)
class CopyTest:
    """The neighbours in both spaces of a model's synthetic images, and who trained it."""

    members: Members
    spaces: Mapping[str, Neighbours]

    def p(self, members_N: Members, seed: int) -> dict[str, float]:
        """Return the p-value of each space for an assignment of the patients."""
        return {
            name: permutation_p(each.gap, members_N, seed=seed)
            for name, each in self.spaces.items()
        }


def copy_test(
    made: Mapping[str, Tensor], real: Mapping[str, Tensor], trained: Mapping[str, bool]
) -> CopyTest:
    """Compare images (R, 1, H, W) in [0, 1] by patient; `trained` says who of them trained."""
    patients = list(trained)
    spaces = {
        "images": neighbours(made, real, patients),
        "features": neighbours(
            {name: features_of(images) for name, images in made.items()},
            {name: features_of(images) for name, images in real.items()},
            patients,
        ),
    }
    return CopyTest(np.array([trained[name] for name in patients]), spaces)


def joined_tests(tests: Sequence[CopyTest]) -> CopyTest:
    """Join the tests of one site's tasks; each task's distances are relative to their mean."""
    spaces = {
        name: Neighbours(
            np.concatenate([_relative(test.spaces[name].apart) for test in tests]),
            np.concatenate([test.spaces[name].origin for test in tests]),
        )
        for name in SPACES
    }
    return CopyTest(tests[0].members, spaces)


def _relative(apart: NDArray[np.float64]) -> NDArray[np.float64]:
    return apart / max(float(apart[np.isfinite(apart)].mean()), 1e-12)


def closest(
    made: Mapping[str, Tensor], real: Mapping[str, Tensor], trained: Mapping[str, bool]
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the synthetic image of a person outside of training that is nearest to a training one.

    With it come that training image and the nearest one of a test patient; each is (1, H, W).
    """
    asked = torch.cat([made[name] for name in made if not trained.get(name, False)])
    pools = [
        torch.cat([real[name] for name, member in trained.items() if member is inside])
        for inside in (True, False)
    ]
    apart = [torch.cdist(asked.flatten(1), pool.flatten(1)) for pool in pools]
    row = int(apart[0].amin(1).argmin())
    near, far = (pool[int(each[row].argmin())] for pool, each in zip(pools, apart, strict=True))
    return asked[row], near, far


def judge_copies(test: CopyTest, controls: Mapping[str, CopyTest], *, seed: int) -> AuditedAttack:
    """Judge whether a model copies; `controls` are tests of models that cannot know who trained."""
    members = test.members
    inside, outside = int(members.sum()), int((~members).sum())
    able = enough_patients(inside, outside, tests=len(SPACES)) and outside > 1
    p = test.p(members, seed)
    verdict: AuditVerdict = "too few" if not able else "not found"
    if able and min(p.values()) * len(SPACES) <= FLAGGED_AT:
        verdict = "found"
    label = {name: controlled.p(members, seed) for name, controlled in controls.items()}
    label["The same model, patients' labels shuffled"] = test.p(shuffled(members, seed), seed)
    return AuditedAttack(
        COPIES,
        verdict,
        _sentence(verdict, inside, outside),
        tuple(_figures(test, p)),
        tuple(
            AuditFigure(f"{name}: smaller p of both spaces", min(found.values()))
            for name, found in label.items()
        ),
        _REMEDIES,
    )


def _sentence(verdict: AuditVerdict, inside: int, outside: int) -> str:
    match verdict:
        case "found":
            return (
                "Synthetic images are nearer to the training patients than to patients the model "
                "never saw: it has memorised some of them."
            )
        case "too few":
            return (
                f"{inside} trained and {outside} are for testing: no outcome could be told from "
                "chance."
            )
        case _:
            return (
                "Synthetic images are no nearer to the training patients than to patients the "
                "model never saw."
            )


def _figures(test: CopyTest, p: Mapping[str, float]) -> list[AuditFigure]:
    found: list[AuditFigure] = []
    for name, each in test.spaces.items():
        found += [
            AuditFigure(
                f"In the space of {name}: training images nearer by, relative",
                each.gap(test.members),
            ),
            AuditFigure(
                f"In the space of {name}: share nearest to a training patient",
                each.share(test.members),
            ),
            AuditFigure(f"In the space of {name}: p", p[name]),
        ]
    return found
