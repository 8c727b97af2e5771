"""A session's contrasts are brought to one place by mutual information.

Mattes et al., IEEE Trans. Med. Imaging 2003; its optimiser sees a sample of voxels, drawn by a
fixed seed, and one thread adds them up: two runs give the same transform.
"""

# SimpleITK has no types of its own.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray

from grandrounds.data.preparation.volumes import (
    SessionVolumes,
    StepRecord,
    WorkingVolume,
    changed,
    grown,
    head_in,
    resampled,
    voxels_of,
)

JOINT_BINS = 50
HEAD_MARGIN = 10.0  # mm around the head in which voxels count: its outline tells most
LEAST_GAIN = 1e-3  # of normalised mutual information, by which a transform must beat the headers


@dataclass(frozen=True)
class Level:
    """A stage from coarse to fine: grid in mm, share of voxels seen, first step in mm."""

    grid: float
    sampling: float
    step: float
    iterations: int = 150


COARSE_TO_FINE = (Level(6.0, 0.6, 3.0), Level(3.0, 0.25, 1.0), Level(2.0, 0.15, 0.5))


@dataclass(frozen=True)
class Found:
    """A transform of the reference's places to the contrast's, and how well the two then agree."""

    transform: sitk.Transform
    metric: float
    iterations: int
    stopped: str


@dataclass(frozen=True)
class Register:
    """Rigid (6 parameters) or affine (12) registration of each contrast onto the reference."""

    kind: Literal["rigid", "affine"] = "rigid"
    levels: tuple[Level, ...] = COARSE_TO_FINE
    seed: int = 1

    def __call__(self, session: SessionVolumes) -> SessionVolumes:
        """Return the session with a transform for each contrast; no voxel is touched yet."""
        reference = session.fixed
        return changed(
            session,
            lambda _, volume: volume if volume is reference else self._placed(reference, volume),
        )

    def _placed(self, reference: WorkingVolume, volume: WorkingVolume) -> WorkingVolume:
        finest = self.levels[-1].grid
        fixed, moving = (working(each.image, finest) for each in (reference, volume))
        inside = around_head(fixed)
        found = self._search(reference.image, volume.image)
        before = agreement(fixed, moving, inside)
        after = agreement(fixed, moving, inside, found.transform)
        kept = after > before + LEAST_GAIN
        transform = found.transform if kept else sitk.Transform(3, sitk.sitkIdentity)
        record: StepRecord = {
            "Step": "registration",
            "Method": f"{self.kind}, Mattes mutual information",
            "ReferenceSHA256": reference.digest,
            "Levels": [vars(level) for level in self.levels],
            "Bins": JOINT_BINS,
            "Seed": self.seed,
            "FinalMetric": found.metric,
            "Iterations": found.iterations,
            "Stopped": found.stopped,
            "NormalisedMutualInformation": {"Before": before, "After": after},
            "Kept": "the transform found" if kept else "the headers' placement: nothing is better",
            **_described(transform),
            **_moved(transform, fixed, inside),
        }
        return replace(volume.after(record), transform=transform if kept else None)

    def _search(self, fixed: sitk.Image, moving: sitk.Image) -> Found:
        """Refine the better of two starts: where the headers place it, and by centres of mass."""
        coarse, *finer = self.levels
        starts = (_start(fixed, moving, centred) for centred in (False, True))
        rough = [self._refine(fixed, moving, start, coarse) for start in starts]
        found = min(rough, key=lambda each: each.metric)
        transform = found.transform
        if self.kind == "affine":
            transform = _as_affine(transform)
        for level in finer:
            found = self._refine(fixed, moving, transform, level)
            transform = found.transform
        return found

    def _refine(
        self, fixed: sitk.Image, moving: sitk.Image, start: sitk.Transform, level: Level
    ) -> Found:
        small, other = working(fixed, level.grid), working(moving, level.grid)
        method = sitk.ImageRegistrationMethod()
        method.SetNumberOfThreads(1)
        method.SetMetricAsMattesMutualInformation(JOINT_BINS)
        method.SetMetricFixedMask(around_head(small))
        method.SetMetricSamplingStrategy(method.RANDOM)
        method.SetMetricSamplingPercentage(level.sampling, self.seed)
        method.SetInterpolator(sitk.sitkLinear)
        method.SetOptimizerAsRegularStepGradientDescent(
            level.step, level.grid / 500, level.iterations, relaxationFactor=0.6
        )
        method.SetOptimizerScalesFromPhysicalShift()
        method.SetInitialTransform(start, inPlace=False)
        found = method.Execute(small, other).Downcast()
        if isinstance(found, sitk.CompositeTransform):
            found = found.GetNthTransform(0).Downcast()
        stopped = method.GetOptimizerStopConditionDescription().partition(":")[2].strip()
        return Found(found, method.GetMetricValue(), method.GetOptimizerIteration(), stopped)


def working(image: sitk.Image, grid: float) -> sitk.Image:
    """Return an image smoothed and resampled to a grid of equal spacing in mm, of greys in [0, 1].

    The greys end at their 99.9th percentile: a bright vessel would take most of the bins.
    """
    for axis, length in enumerate(image.GetSpacing()):
        if length < grid:
            image = sitk.RecursiveGaussian(image, grid / 2, direction=axis)
    lengths = np.array(image.GetSize()) * image.GetSpacing()
    size = np.maximum(np.ceil(lengths / grid), 8).astype(int)
    direction = np.array(image.GetDirection()).reshape(3, 3)
    middle = (np.array(image.GetSize()) - 1) / 2
    centre = np.array(image.TransformContinuousIndexToPhysicalPoint(middle.tolist()))
    target = sitk.Image(size.tolist(), sitk.sitkUInt8)
    target.SetSpacing([grid] * 3)
    target.SetDirection(image.GetDirection())
    target.SetOrigin((centre - direction @ ((size - 1) / 2 * grid)).tolist())
    small = resampled(image, target)
    low, high = np.percentile(voxels_of(small), [0.1, 99.9])
    return sitk.Clamp((small - float(low)) / max(float(high - low), 1e-6), sitk.sitkFloat32, 0, 1)


def agreement(
    fixed: sitk.Image,
    moving: sitk.Image,
    inside: sitk.Image,
    transform: sitk.Transform | None = None,
) -> float:
    """Return the normalised mutual information of two images, from 1 (none) to 2 (all).

    Studholme et al., Pattern Recognition 1999: (H(A) + H(B)) / H(A, B), by 64 x 64 bins, where
    `inside` is set.
    """
    where = voxels_of(inside) > 0
    pair = [voxels_of(each)[where] for each in (fixed, resampled(moving, fixed, transform))]
    joint, _, _ = np.histogram2d(*pair, bins=64, range=((0, 1), (0, 1)))
    each = _entropy(joint.sum(axis=0)) + _entropy(joint.sum(axis=1))
    return float(round(each / max(_entropy(joint.ravel()), 1e-12), 5))


def _entropy(counts: NDArray[np.float64]) -> float:
    shares = counts[counts > 0] / counts.sum()
    return float(-(shares * np.log(shares)).sum())


def around_head(image: sitk.Image) -> sitk.Image:
    """Return the head, and what lies within 10 mm of it: where voxels count."""
    return sitk.Cast(grown(head_in(image), HEAD_MARGIN), sitk.sitkUInt8)


def _start(fixed: sitk.Image, moving: sitk.Image, centred: bool) -> sitk.Transform:
    start = sitk.Euler3DTransform()
    centre, other = (_centre_of_mass(each) for each in (fixed, moving))
    start.SetCenter(centre)
    if centred:
        start.SetTranslation(np.subtract(other, centre).tolist())
    return start


def _centre_of_mass(image: sitk.Image) -> Sequence[float]:
    shape = sitk.LabelShapeStatisticsImageFilter()
    shape.Execute(sitk.Cast(head_in(working(image, 4.0)), sitk.sitkUInt8))
    return shape.GetCentroid(1)


def _as_affine(rigid: sitk.Transform) -> sitk.Transform:
    affine, known = sitk.AffineTransform(3), sitk.Euler3DTransform(rigid)
    affine.SetMatrix(known.GetMatrix())
    affine.SetTranslation(known.GetTranslation())
    affine.SetCenter(known.GetCenter())
    return affine


def _described(transform: sitk.Transform) -> StepRecord:
    known = transform.Downcast()
    return {
        "Transform": type(known).__name__,
        "Parameters": list(known.GetParameters()),
        "FixedParameters": list(known.GetFixedParameters()),
    }


def _moved(transform: sitk.Transform, fixed: sitk.Image, inside: sitk.Image) -> StepRecord:
    """Return how far the transform moves the head: mm at most and on average."""
    places = np.argwhere(voxels_of(inside) > 0)[::37, ::-1]
    points = [fixed.TransformIndexToPhysicalPoint(place.tolist()) for place in places]
    shifts = [np.linalg.norm(np.subtract(transform.TransformPoint(p), p)) for p in points]
    return {
        "LargestShiftInMm": round(float(np.max(shifts, initial=0.0)), 3),
        "MeanShiftInMm": round(float(np.mean(shifts)) if shifts else 0.0, 3),
    }
