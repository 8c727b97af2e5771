"""How alike a synthesised image and the real one look to a fixed bank of filters, case by case."""

# Names end in the shape: B batch, 1 channel, H, W; O orientation, 2 row and column.
# ruff: noqa: N803, N806

from math import log, pi, sqrt

import torch
from torch import Tensor, fft

WAVELENGTHS = (4.0, 8.0, 16.0)  # pixels, an octave apart
ORIENTATIONS = 6
WEAKEST = 1e-3  # structure, root mean square for images in [0, 1]; a blank slice has less

_SPREAD = 1 / (3 * sqrt(2 * log(2)))  # over the frequency: half height at 2/3 and 4/3, an octave


def gabor(prediction_B1HW: Tensor, target_B1HW: Tensor) -> Tensor:
    """Gabor distance, (B,): 0 for equal images, 1 for a flat prediction, more for false structure.

    The mean over wavelengths of |p - t| / |t|, where p and t are the magnitudes of the responses to
    complex Gabor filters of 6 orientations, and |.| is the root of the sum of squares over
    orientations and pixels. So 4, 8 and 16 pixels count alike, however weak the structure there;
    only where its root mean square is below a thousandth is that taken for |t|. What is added to
    all pixels does not count, nor does the sign of a contrast: an inverted image is at distance 0.
    Filters wrap around the image's edges. Daugman 1985; magnitudes as features: Manjunath and Ma
    1996.
    """
    distances = [_distance(prediction_B1HW, target_B1HW, length) for length in WAVELENGTHS]
    return torch.stack(distances).mean(0)


def _distance(prediction_B1HW: Tensor, target_B1HW: Tensor, wavelength: float) -> Tensor:
    found_BOHW = _magnitudes(prediction_B1HW, wavelength)
    real_BOHW = _magnitudes(target_B1HW, wavelength)
    error_B = (found_BOHW - real_BOHW).square().flatten(1).mean(1).sqrt()
    return error_B / real_BOHW.square().flatten(1).mean(1).sqrt().clamp_min(WEAKEST)


def _magnitudes(image_B1HW: Tensor, wavelength: float) -> Tensor:
    height, width = image_B1HW.shape[-2:]
    filters_OHW = _filters(height, width, wavelength).to(image_B1HW)
    varying_B1HW = image_B1HW - image_B1HW.mean((-2, -1), keepdim=True)
    responses = fft.ifft2(fft.fft2(varying_B1HW) * filters_OHW)  # pyright: ignore
    return torch.abs(responses)  # pyright: ignore[reportUnknownArgumentType]


def _filters(height: int, width: int, wavelength: float) -> Tensor:
    """Give the filters' transfer functions, (O, H, W): Gaussians around their frequencies."""
    angles_O = torch.arange(ORIENTATIONS) * pi / ORIENTATIONS
    centres_O2 = torch.stack([angles_O.sin(), angles_O.cos()], -1) / wavelength
    rows_H, columns_W = (_frequencies(length) for length in (height, width))
    off_OH = rows_H - centres_O2[:, :1]
    off_OW = columns_W - centres_O2[:, 1:]
    off_OHW = off_OH.square()[:, :, None] + off_OW.square()[:, None]
    return torch.exp(-off_OHW / (2 * (_SPREAD / wavelength) ** 2))


def _frequencies(length: int) -> Tensor:
    return fft.fftfreq(length)  # pyright: ignore
