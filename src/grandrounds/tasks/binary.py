"""What tasks with two classes have in common: the loss, the scores of a case, a site's summary.

Shapes: B batch; logits, probabilities and targets are (B, 1), a target is 0 or 1.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import isnan
from statistics import fmean
from typing import Protocol

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from grandrounds.core.device import to_float32
from grandrounds.core.messages import CaseScore
from grandrounds.core.roc import THRESHOLD, FloatArray, auc, balanced_accuracy, sensitivity_at
from grandrounds.tasks.metrics import mean_over_patients
from grandrounds.tasks.task import Batch, StagedTask, TaskOptions

METRIC = "log_score"  # defined for one class, too
SCORES = ("log_loss", "accuracy")
RAREST = 1e-12  # a probability below it counts as this one: a log loss stays finite


class BinaryOptions(TaskOptions, Protocol):
    """The options that every task with two classes has."""

    @property
    def positive_weight(self) -> float:
        """Say how many times a positive case counts in the loss."""
        ...


@dataclass(frozen=True)
class BinaryTask(StagedTask):
    """A task whose network gives one logit for a case."""

    options: BinaryOptions

    def loss(self, output: Tensor, batch: Batch) -> Tensor:
        """Give the cross-entropy of logits, the mean over the cases."""
        return binary_loss(output, batch["target"], positive_weight=self.options.positive_weight)

    def predict(self, model: nn.Module, batch: Batch) -> Tensor:
        """Give probabilities, (B, 1)."""
        model.eval()
        return self.to_prediction(model(batch["source"]))

    def to_prediction(self, output: Tensor) -> Tensor:
        """Turn logits into probabilities."""
        return probabilities(output)

    def score(self, prediction: Tensor, batch: Batch) -> dict[str, Tensor]:
        """Score each case: log loss, accuracy, and the probability and label they are of."""
        return binary_scores(prediction, batch["target"])


def binary_loss(logits: Tensor, target: Tensor, *, positive_weight: float = 1.0) -> Tensor:
    """Give the cross-entropy, the mean over the batch; a positive case counts this many times."""
    weight = torch.tensor(positive_weight, dtype=logits.dtype, device=logits.device)
    return functional.binary_cross_entropy_with_logits(logits, target, pos_weight=weight)


def probabilities(logits: Tensor) -> Tensor:
    """Turn logits into probabilities, float64."""
    return to_float32(logits).double().sigmoid()


def binary_scores(probability: Tensor, target: Tensor) -> dict[str, Tensor]:
    """Score each case, (B,): log loss, its negative "log_score", accuracy, and what they are of."""
    found, label = probability.flatten().double(), target.flatten().double()
    true = torch.where(label > 0, found, 1 - found).clamp_min(RAREST)
    right = (found >= THRESHOLD) == (label > 0)
    return {
        "log_loss": -true.log(),
        METRIC: true.log(),
        "accuracy": right.double(),
        "probability": found,
        "label": label,
    }


def binary_summary(
    scores: Sequence[CaseScore], *, whole: bool, specificity: float
) -> dict[str, float]:
    """Summarise cases; what needs both classes is left out where a site has one only.

    `whole` averages the probabilities of a patient's cases to one, for a target that is known of
    the patient; else each case counts. Means go over tasks, then sites.
    """
    means = mean_over_patients(scores)
    kept = {name: means[name] for name in (METRIC, *SCORES) if name in means}
    return kept | _means(_discriminations(scores, whole=whole, specificity=specificity))


def _discriminations(
    scores: Sequence[CaseScore], *, whole: bool, specificity: float
) -> dict[str, list[dict[str, float]]]:
    """Give what each task of each site came to, by site."""
    by_task: dict[tuple[str, str], list[CaseScore]] = defaultdict(list)
    for score in scores:
        by_task[score.site, score.task].append(score)
    found: dict[str, list[dict[str, float]]] = defaultdict(list)
    for (site, _), own in by_task.items():
        found[site].append(_discrimination(*_pooled(own, whole=whole), specificity))
    return found


def _discrimination(
    found_N: FloatArray, label_N: FloatArray, specificity: float
) -> dict[str, float]:
    return {
        "auc": auc(found_N, label_N),
        "balanced_accuracy": balanced_accuracy(found_N, label_N),
        f"sensitivity_at_{round(100 * specificity)}": sensitivity_at(
            found_N, label_N, specificity=specificity
        ),
    }


def _pooled(scores: Sequence[CaseScore], *, whole: bool) -> tuple[FloatArray, FloatArray]:
    pairs: dict[tuple[str, str], list[tuple[float, float]]] = defaultdict(list)
    for score in scores:
        key = (score.patient, "" if whole else score.case)
        pairs[key].append((score.values["probability"], score.values["label"]))
    found, labels = np.array([np.mean(own, axis=0) for own in pairs.values()], np.float64).T
    return found, labels


def _means(by_site: Mapping[str, Sequence[Mapping[str, float]]]) -> dict[str, float]:
    names = dict.fromkeys(n for tasks in by_site.values() for own in tasks for n in own)
    sites = {n: [_mean(own[n] for own in tasks) for tasks in by_site.values()] for n in names}
    return {n: _mean(values) for n, values in sites.items() if not all(map(isnan, values))}


def _mean(values: Iterable[float]) -> float:
    """Average what is defined."""
    defined = [value for value in values if not isnan(value)]
    return fmean(defined) if defined else float("nan")
