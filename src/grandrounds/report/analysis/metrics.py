"""The scores that a report can name, print and explain are listed here."""

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class Metric:
    """A score's name, unit and direction, and how it is printed and explained."""

    key: str
    label: str
    unit: str
    higher_is_better: bool
    negligible: float  # scores with a smaller difference are called practically equal
    meaning: str


METRICS = {
    metric.key: metric
    for metric in (
        Metric(
            *("psnr", "PSNR", "dB", True, 0.05),
            "higher is closer to the target; 1 dB more means that the squared error is about "
            "one fifth smaller.",
        ),
        Metric(
            *("ssim", "SSIM", "", True, 0.005),
            "from 0 to 1, higher is better; it asks whether edges and textures lie where they lie "
            "in the target.",
        ),
        Metric(
            *("nrmse", "NRMSE", "", False, 0.005),
            "lower is better; the typical error as a share of the target's brightness, so 0.10 "
            "is an error of one tenth.",
        ),
        Metric(
            *("gabor", "Gabor distance", "", False, 0.01),
            "0 is the same texture, 1 a flat image; it compares edges and stripes of several sizes "
            "and directions, and sees neither brightness nor the sign of a contrast.",
        ),
        Metric(
            *("psnr_brain", "PSNR in the brain", "dB", True, 0.05),
            "as PSNR, over the pixels inside the brain mask alone.",
        ),
        Metric(
            *("ssim_brain", "SSIM in the brain", "", True, 0.005),
            "as SSIM, over the places inside the brain mask alone.",
        ),
        Metric(
            *("nrmse_brain", "NRMSE in the brain", "", False, 0.005),
            "as NRMSE, over the pixels inside the brain mask alone.",
        ),
        Metric(
            *("dice", "Dice", "", True, 0.005),
            "from 0 to 1, higher is better; twice the overlap of the drawn and the real structure, "
            "over the sum of both.",
        ),
        Metric(
            *("hd95", "HD95 in slices", "mm", False, 0.1),
            "lower is better; in the same slice, all but the worst twentieth of either outline is "
            "nearer to the other than this. A slice that only one of them has counts with the "
            "image's diagonal.",
        ),
        Metric(
            *("hd95_3d", "HD95 in space", "mm", False, 0.1),
            "lower is better; in three dimensions, all but the worst twentieth of either surface "
            "is nearer to the other than this. A structure that is missed counts with the volume's "
            "diagonal.",
        ),
        Metric(
            *("log_loss", "Log loss", "", False, 0.01),
            "lower is better, 0 is perfect; a model that gives every case the chance of one half "
            "has 0.69. Confident mistakes cost most.",
        ),
        Metric(
            *("accuracy", "Accuracy", "", True, 0.01),
            "from 0 to 1, higher is better; the share of cases that are put into the right class.",
        ),
    )
}
CASE_DATA = ("probability", "label")  # an AUC is computed from these; they are not scores
WATCHED = ("log_score",)  # the negative log loss, which early stopping uses
COUNTED = ("empty",)  # the share of a case's structures that its mask does not show


def metric_of(key: str) -> Metric:
    """Return what is known of a score; one of a task of one's own has its name alone."""
    own = Metric(key, key, "", True, 0.005, "a score of the study's own task; higher is better.")
    return METRICS.get(key, own)


def shown(present: Iterable[str], *, own: bool) -> tuple[str, ...]:
    """Return the scores that a page shows, the main one first.

    Those of a task of one's `own` are in the order in which it gives them.
    """
    if own:
        return tuple(dict.fromkeys(key for key in present if key not in CASE_DATA))
    found = set(present)
    return tuple(key for key in METRICS if key in found)


def is_known(key: str) -> bool:
    """Tell whether a score is one of `METRICS`, or one that no page shows by itself."""
    return key in METRICS or key in CASE_DATA + WATCHED + COUNTED or key.startswith("dice_")
