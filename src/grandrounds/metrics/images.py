"""How close a synthesised image is to the real one, case by case, with a fixed data range.

A mask, (B, 1, H, W) of bool, leaves a score to the pixels inside; where it has none the score is
nan.
"""

# Names end in the shape: B batch, 1 channel, H, W.
# ruff: noqa: N803, N806

import torch
from torch import Tensor

DATA_RANGE = 1.0

_WINDOW = 11  # pixels


def psnr(prediction_B1HW: Tensor, target_B1HW: Tensor, mask_B1HW: Tensor | None = None) -> Tensor:
    """Peak signal-to-noise ratio in dB, (B,), for images in [0, 1].

    The peak is 1, never an image's own maximum.
    """
    error_B = _mean((prediction_B1HW - target_B1HW).square(), mask_B1HW)
    return 10.0 * torch.log10(DATA_RANGE**2 / error_B.clamp_min(1e-12))


def ssim(prediction_B1HW: Tensor, target_B1HW: Tensor, mask_B1HW: Tensor | None = None) -> Tensor:
    """Structural similarity, (B,), Gaussian window of 11 pixels (sd 1.5), data range 1.

    The mean over windows that lie in the image; with a mask, over those with their middle in it,
    although a window reaches 5 pixels beyond. Wang et al. 2004.
    """
    from monai.metrics.regression import compute_ssim_and_cs  # seconds, for those who need it

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
