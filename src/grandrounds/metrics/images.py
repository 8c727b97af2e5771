"""How close a synthesised image is to the real one, case by case, with a fixed data range."""

# Names end in the shape: B batch, 1 channel, H, W.
# ruff: noqa: N803, N806

import torch
from monai.metrics.regression import compute_ssim_and_cs
from torch import Tensor

DATA_RANGE = 1.0


def psnr(prediction_B1HW: Tensor, target_B1HW: Tensor) -> Tensor:
    """Peak signal-to-noise ratio in dB, (B,), for images in [0, 1].

    The peak is 1, never an image's own maximum.
    """
    error_B = (prediction_B1HW - target_B1HW).square().flatten(1).mean(1)
    return 10.0 * torch.log10(DATA_RANGE**2 / error_B.clamp_min(1e-12))


def ssim(prediction_B1HW: Tensor, target_B1HW: Tensor) -> Tensor:
    """Structural similarity, (B,), Gaussian window of 11 pixels (sd 1.5), data range 1.

    Wang et al. 2004.
    """
    similarity, _ = compute_ssim_and_cs(
        prediction_B1HW,
        target_B1HW,
        spatial_dims=2,
        kernel_size=(11, 11),
        kernel_sigma=(1.5, 1.5),
        data_range=DATA_RANGE,
    )
    return similarity.flatten(1).mean(1)


def nrmse(prediction_B1HW: Tensor, target_B1HW: Tensor) -> Tensor:
    """Root mean squared error over the target's root mean square, (B,)."""
    error_B = (prediction_B1HW - target_B1HW).square().flatten(1).mean(1).sqrt()
    return error_B / target_B1HW.square().flatten(1).mean(1).sqrt().clamp_min(1e-6)
