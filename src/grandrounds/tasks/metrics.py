"""Metrics score each case of a task, and are averaged over patients, tasks and sites.

Names end in the shape: B batch, 1 channel, H, W; N slice, O orientation, S structure;
2 row and column.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from math import hypot, log, pi, sqrt
from statistics import fmean

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage  # pyright: ignore[reportMissingTypeStubs]
from torch import Tensor, fft

from grandrounds.core.messages import CaseScore

WAVELENGTHS = (4.0, 8.0, 16.0)  # pixels, an octave apart
ORIENTATIONS = 6
WEAKEST = 1e-3  # structure, root mean square for images in [0, 1]; a blank slice has less
DATA_RANGE = 1.0
PERCENTILE = 95.0  # of the distances between two outlines
_WINDOW = 11  # pixels, of structural similarity
_SPREAD = 1 / (3 * sqrt(2 * log(2)))  # over the frequency: half height at 2/3 and 4/3, an octave


def gabor(prediction_B1HW: Tensor, target_B1HW: Tensor) -> Tensor:
    """Gabor distance, (B,): 0 for equal images, 1 for a flat prediction, more for false structure.

    The mean over wavelengths of |p - t| / |t|, where p and t are the magnitudes of the responses to
    complex Gabor filters of 6 orientations, and |.| is the root of the sum of squares over
    orientations and pixels. So 4, 8 and 16 pixels count alike, however weak their structure; |t| is
    at least a root mean square of a thousandth. A constant added to all pixels does not
    count, nor does the sign of a contrast: an inverted image is at distance 0.
    Filters wrap around the image's edges. Daugman 1985; magnitudes as features: Manjunath and Ma
    1996.
    """
    distances = [_distance(prediction_B1HW, target_B1HW, length) for length in WAVELENGTHS]
    return torch.stack(distances).mean(0)


def _distance(prediction_B1HW: Tensor, target_B1HW: Tensor, wavelength: float) -> Tensor:
    predicted_BOHW = gabor_magnitudes(prediction_B1HW, wavelength)
    target_BOHW = gabor_magnitudes(target_B1HW, wavelength)
    error_B = (predicted_BOHW - target_BOHW).square().flatten(1).mean(1).sqrt()
    return error_B / target_BOHW.square().flatten(1).mean(1).sqrt().clamp_min(WEAKEST)


def gabor_magnitudes(image_B1HW: Tensor, wavelength: float) -> Tensor:
    """Return the magnitudes of the responses to complex Gabor filters, (B, O, H, W)."""
    height, width = image_B1HW.shape[-2:]
    filters_OHW = _filters(height, width, wavelength).to(image_B1HW)
    varying_B1HW = image_B1HW - image_B1HW.mean((-2, -1), keepdim=True)
    responses = fft.ifft2(fft.fft2(varying_B1HW) * filters_OHW)  # pyright: ignore
    return torch.abs(responses)  # pyright: ignore[reportUnknownArgumentType]


def _filters(height: int, width: int, wavelength: float) -> Tensor:
    """Return the filters' transfer functions, (O, H, W): Gaussians around their frequencies."""
    angles_O = torch.arange(ORIENTATIONS) * pi / ORIENTATIONS
    centres_O2 = torch.stack([angles_O.sin(), angles_O.cos()], -1) / wavelength
    rows_H, columns_W = (_frequencies(length) for length in (height, width))
    off_OH = rows_H - centres_O2[:, :1]
    off_OW = columns_W - centres_O2[:, 1:]
    off_OHW = off_OH.square()[:, :, None] + off_OW.square()[:, None]
    return torch.exp(-off_OHW / (2 * (_SPREAD / wavelength) ** 2))


def _frequencies(length: int) -> Tensor:
    return fft.fftfreq(length)  # pyright: ignore


def psnr(prediction_B1HW: Tensor, target_B1HW: Tensor, mask_B1HW: Tensor | None = None) -> Tensor:
    """Peak signal-to-noise ratio in dB, (B,), for images in [0, 1].

    The peak is 1, never an image's own maximum.
    """
    error_B = _mean((prediction_B1HW - target_B1HW).square(), mask_B1HW)
    return 10.0 * torch.log10(DATA_RANGE**2 / error_B.clamp_min(1e-12))


def ssim(prediction_B1HW: Tensor, target_B1HW: Tensor, mask_B1HW: Tensor | None = None) -> Tensor:
    """Structural similarity, (B,), Gaussian window of 11 pixels (sd 1.5), data range 1.

    The mean over windows that lie in the image; with a mask, over those with their centre in it,
    although a window reaches 5 pixels beyond. Wang et al. 2004.
    """
    from monai.metrics.regression import compute_ssim_and_cs  # an import that takes seconds

    similarity, _ = compute_ssim_and_cs(
        prediction_B1HW,
        target_B1HW,
        spatial_dims=2,
        kernel_size=(_WINDOW, _WINDOW),
        kernel_sigma=(1.5, 1.5),
        data_range=DATA_RANGE,
    )
    return _mean(similarity, None if mask_B1HW is None else _middles(mask_B1HW))


def nrmse(prediction_B1HW: Tensor, target_B1HW: Tensor, mask_B1HW: Tensor | None = None) -> Tensor:
    """Root mean squared error over the target's root mean square, (B,)."""
    error_B = _mean((prediction_B1HW - target_B1HW).square(), mask_B1HW).sqrt()
    return error_B / _mean(target_B1HW.square(), mask_B1HW).sqrt().clamp_min(1e-6)


def _mean(values_B1HW: Tensor, mask_B1HW: Tensor | None) -> Tensor:
    if mask_B1HW is None:
        return values_B1HW.flatten(1).mean(1)
    inside_B1HW = values_B1HW.where(mask_B1HW, 0)
    return inside_B1HW.flatten(1).sum(1) / mask_B1HW.flatten(1).sum(1)


def _middles(mask_B1HW: Tensor) -> Tensor:
    edge = _WINDOW // 2
    return mask_B1HW[:, :, edge:-edge, edge:-edge]


def dice(predicted_NSHW: Tensor, target_NSHW: Tensor) -> Tensor:
    """Twice the overlap over both sizes, (S,), of boolean masks; 1 where both are empty.

    Dice 1945.
    """
    overlap_S = (predicted_NSHW & target_NSHW).sum((0, 2, 3)).double()
    sizes_S = (predicted_NSHW.sum((0, 2, 3)) + target_NSHW.sum((0, 2, 3))).double()
    return torch.where(sizes_S > 0, 2 * overlap_S / sizes_S.clamp_min(1), 1.0)


def hd95(predicted_NSHW: Tensor, target_NSHW: Tensor, spacing: Sequence[float]) -> Tensor:
    """95th percentile of the Hausdorff distance in mm, (S,), of boolean masks.

    Each surface pixel's distance to the other mask's surface in the same slice, pooled over all
    slices; the larger percentile of both directions. A slice where only one mask has a pixel counts
    with the image's diagonal. `spacing` is that of rows and columns in mm. Huttenlocher et al.
    1993.
    """
    pairs = [(predicted_NSHW[:, s], target_NSHW[:, s]) for s in range(predicted_NSHW.shape[1])]
    values = [
        _hd95(predicted.cpu().numpy(), target.cpu().numpy(), spacing) for predicted, target in pairs
    ]
    return torch.tensor(values, dtype=torch.float64)


def hd95_3d(
    predicted_NSHW: Tensor, target_NSHW: Tensor, spacing: Sequence[float], heights: Sequence[float]
) -> Tensor:
    """As `hd95`, but in space: surfaces have neighbours above and below, and distances cross them.

    `heights` are the slices' places in mm, which are multiples of their distance; a slice between
    that was left out is empty. Where only one mask has a voxel, the volume's diagonal counts.
    """
    apart = min((b - a for a, b in pairwise(heights)), default=1.0)
    places = np.rint((np.asarray(heights) - heights[0]) / apart).astype(np.intp)
    values: list[float] = []
    for structure in range(predicted_NSHW.shape[1]):
        volumes: list[NDArray[np.bool_]] = []
        for found_NHW in (predicted_NSHW[:, structure], target_NSHW[:, structure]):
            volume = np.zeros((places[-1] + 1, *found_NHW.shape[1:]), np.bool_)
            volume[places] = found_NHW.cpu().numpy()
            volumes.append(volume)
        values.append(_hd95([volumes[0]], [volumes[1]], (apart, *spacing)))
    return torch.tensor(values, dtype=torch.float64)


def _hd95(
    predicted_NHW: Sequence[NDArray[np.bool_]] | NDArray[np.bool_],
    target_NHW: Sequence[NDArray[np.bool_]] | NDArray[np.bool_],
    spacing: Sequence[float],
) -> float:
    to_target = [_distances(*pair, spacing) for pair in zip(predicted_NHW, target_NHW, strict=True)]
    to_predicted = [
        _distances(*pair, spacing) for pair in zip(target_NHW, predicted_NHW, strict=True)
    ]
    pools = [np.concatenate(distances) for distances in (to_target, to_predicted)]
    return max((float(np.percentile(pool, PERCENTILE)) for pool in pools if pool.size), default=0.0)


def _distances(
    mask_HW: NDArray[np.bool_], other_HW: NDArray[np.bool_], spacing: Sequence[float]
) -> NDArray[np.float64]:
    """Measure from each surface pixel of one mask to the nearest one of the other."""
    surface = _surface(mask_HW)
    if not other_HW.any():
        diagonal = hypot(*(n * mm for n, mm in zip(mask_HW.shape, spacing, strict=True)))
        return np.full(np.count_nonzero(surface), diagonal)
    return _to_nearest(_surface(other_HW), spacing)[surface]


def _surface(mask_HW: NDArray[np.bool_]) -> NDArray[np.bool_]:
    inside: NDArray[np.bool_] = ndimage.binary_erosion(mask_HW)  # pyright: ignore
    return mask_HW & ~inside


def _to_nearest(surface_HW: NDArray[np.bool_], spacing: Sequence[float]) -> NDArray[np.float64]:
    distances = ndimage.distance_transform_edt(~surface_HW, sampling=spacing)  # pyright: ignore
    return np.asarray(distances, np.float64)


def patient_means(scores: Iterable[CaseScore], metric: str) -> dict[tuple[str, str, str], float]:
    """Average a metric within each (site, task, patient)."""
    values: dict[tuple[str, str, str], list[float]] = defaultdict(list)
    for score in scores:
        values[score.site, score.task, score.patient].append(score.values[metric])
    return {key: fmean(patient_values) for key, patient_values in values.items()}


def mean_over_patients(scores: Sequence[CaseScore]) -> dict[str, float]:
    """Average every metric over patients, then tasks, then sites; empty without scores."""
    metrics = scores[0].values if scores else ()
    return {metric: _mean_of_means(patient_means(scores, metric)) for metric in metrics}


def mean_where_scored(scores: Sequence[CaseScore]) -> dict[str, float]:
    """Average every metric as `mean_over_patients` does, each among the cases that have it."""
    names = dict.fromkeys(name for score in scores for name in score.values)
    return {name: mean_over_patients(_only(name, scores))[name] for name in names}


def _only(name: str, scores: Sequence[CaseScore]) -> list[CaseScore]:
    return [replace(s, values={name: s.values[name]}) for s in scores if name in s.values]


def _mean_of_means(by_patient: Mapping[tuple[str, str, str], float]) -> float:
    by_task: dict[tuple[str, str], list[float]] = defaultdict(list)
    for (site, task, _), value in by_patient.items():
        by_task[site, task].append(value)
    by_site: dict[str, list[float]] = defaultdict(list)
    for (site, _), values in by_task.items():
        by_site[site].append(fmean(values))
    return fmean(fmean(values) for values in by_site.values())
