"""The scores that a report can name, print and explain."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Metric:
    """How to name, print and read a score."""

    key: str
    label: str
    unit: str
    higher_is_better: bool
    negligible: float  # smaller differences are called practically equal
    meaning: str


METRICS = {
    metric.key: metric
    for metric in (
        Metric(
            *("psnr", "PSNR", "dB", True, 0.05),
            "higher is closer to the real image; 1 dB more means that the squared error is about "
            "one fifth smaller.",
        ),
        Metric(
            *("ssim", "SSIM", "", True, 0.005),
            "from 0 to 1, higher is better; it asks whether edges and textures lie where they lie "
            "in the real image.",
        ),
        Metric(
            *("nrmse", "NRMSE", "", False, 0.005),
            "lower is better; the typical error as a share of the real image's brightness, so 0.10 "
            "is an error of one tenth.",
        ),
    )
}
