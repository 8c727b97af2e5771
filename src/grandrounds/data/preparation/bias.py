"""A coil's shading is removed by N4 (Tustison et al., IEEE Trans. Med. Imaging 2010)."""

# SimpleITK has no types of its own.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false

from dataclasses import dataclass

import numpy as np
import SimpleITK as sitk

from grandrounds.core.errors import BadImage
from grandrounds.core.sentence import phrase
from grandrounds.data.preparation.volumes import (
    SessionVolumes,
    WorkingVolume,
    changed,
    head_in,
    resampled,
    voxels_of,
)

FEWEST_VOXELS = 200  # voxels of the mask on the shrunken grid, from which a field can be fitted
BELOW_ZERO = 0.02  # share of the mask's voxels that may be below 0


@dataclass(frozen=True)
class CorrectBias:
    """N4 on a grid of about `grid` mm, inside the brain (without a mask of it: inside the head).

    Each level doubles the knots of the B-spline of the logarithmic field. It is evaluated on the
    volume's own grid, and scaled to a geometric mean of 1 in the mask: the level of greys stays.
    """

    grid: float = 5.0
    iterations: tuple[int, ...] = (40, 40, 40)
    convergence: float = 1e-3

    def __call__(self, session: SessionVolumes) -> SessionVolumes:
        """Return the session with each contrast divided by its field."""
        brain = session.masks.get("brain")
        return changed(session, lambda _, volume: self._corrected(volume, brain))

    def _corrected(self, volume: WorkingVolume, brain: WorkingVolume | None) -> WorkingVolume:
        image = volume.image
        mask = _mask_for(image, brain)
        shrink = [max(1, round(self.grid / length)) for length in image.GetSpacing()]
        small, inside = sitk.Shrink(image, shrink), sitk.Shrink(mask, shrink)
        _check(voxels_of(small)[voxels_of(inside) > 0])
        filter = sitk.N4BiasFieldCorrectionImageFilter()
        filter.SetMaximumNumberOfIterations(list(self.iterations))
        filter.SetConvergenceThreshold(self.convergence)
        filter.Execute(small, inside)
        fitted = filter.GetLogBiasFieldAsImage(image)
        level = float(voxels_of(fitted)[voxels_of(mask) > 0].mean(dtype=np.float64))
        field = sitk.Exp(sitk.Cast(fitted - level, sitk.sitkFloat32))
        within = voxels_of(field)[voxels_of(mask) > 0]
        record = {
            "Step": "bias field",
            "Method": "N4ITK",
            "Mask": "brain" if brain else "head, by Otsu's threshold",
            "ShrinkFactors": shrink,
            "Iterations": list(self.iterations),
            "ConvergenceThreshold": self.convergence,
            "ReachedIteration": int(filter.GetElapsedIterations()),
            "MeanLogField": level,
            "FinalConvergence": float(filter.GetCurrentConvergenceMeasurement()),
            "FieldPercentiles5And95": np.percentile(within, [5, 95]).round(4).tolist(),
        }
        return volume.after(record, image / field)


def _mask_for(image: sitk.Image, brain: WorkingVolume | None) -> sitk.Image:
    if brain is None:
        return sitk.Cast(head_in(image), sitk.sitkUInt8)
    moved = resampled(brain.image, image, interpolator=sitk.sitkNearestNeighbor)
    return sitk.Cast(moved > 0, sitk.sitkUInt8)


def _check(values: np.ndarray) -> None:
    """Refuse what no field can be fitted to, as N4 takes logarithms."""
    if values.size < FEWEST_VOXELS:
        raise BadImage(
            "its brain or head is too small for N4; a volume must show the brain, and its brain "
            "mask lie on it. prepare.bias = false leaves this step out.",
            safe=phrase("a volume's brain or head is too small for N4"),
        )
    if np.count_nonzero(values < 0) > BELOW_ZERO * values.size:
        raise BadImage(
            "has many values below 0 in the brain or head, and N4 takes logarithms; where these "
            "are right (CT has them), leave this step out with prepare.bias = false.",
            safe=phrase("a volume has many values below 0, which N4 cannot correct"),
        )
