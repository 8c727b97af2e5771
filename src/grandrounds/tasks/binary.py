"""Tasks with two classes share the loss, the scores of a case and the summary of a site.

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

METRIC = "log_score"  # defined for a single class, too
SCORES = ("log_loss", "accuracy")
RAREST = 1e-12  # the lowest probability in a log loss, which thus stays finite


class BinaryOptions(TaskOptions, Protocol):
    """The options that every task with two classes has."""

    @property
    def positive_weight(self) -> float:
        """Return how many times a positive case counts in the loss."""
        ...


@dataclass(frozen=True)
class BinaryTask(StagedTask):
    """A task whose network gives one logit for a case."""

    options: BinaryOptions

    def loss(self, output: Tensor, batch: Batch) -> Tensor:
        """Return the cross-entropy of logits, the mean over the cases."""
        return binary_loss(output, batch["target"], positive_weight=self.options.positive_weight)

    def predict(self, model: nn.Module, batch: Batch) -> Tensor:
        """Return probabilities, (B, 1)."""
        model.eval()
        return self.to_prediction(model(batch["source"]))

    def to_prediction(self, output: Tensor) -> Tensor:
        return probabilities(output)

    def score(self, prediction: Tensor, batch: Batch) -> dict[str, Tensor]:
        """Score each case: log loss, accuracy, and their probability and label."""
        return binary_scores(prediction, batch["target"])


def binary_loss(logits: Tensor, target: Tensor, *, positive_weight: float = 1.0) -> Tensor:
    """Return the mean cross-entropy of the batch; `positive_weight` weighs positive cases."""
    weight = torch.tensor(positive_weight, dtype=logits.dtype, device=logits.device)
    return functional.binary_cross_entropy_with_logits(logits, target, pos_weight=weight)


def probabilities(logits: Tensor) -> Tensor:
    """Turn logits into probabilities, float64."""
    return to_float32(logits).double().sigmoid()


def binary_scores(probability: Tensor, target: Tensor) -> dict[str, Tensor]:
    """Score each case, (B,): log loss, its negative "log_score", accuracy, probability, label."""
    predicted, label = probability.flatten().double(), target.flatten().double()
    true = torch.where(label > 0, predicted, 1 - predicted).clamp_min(RAREST)
    right = (predicted >= THRESHOLD) == (label > 0)
    return {
        "log_loss": -true.log(),
        METRIC: true.log(),
        "accuracy": right.double(),
        "probability": predicted,
        "label": label,
    }


def binary_summary(
    scores: Sequence[CaseScore], *, whole: bool, specificity: float
) -> dict[str, float]:
    """Summarise cases; scores that need both classes are left out where a site has only one.

    `whole` averages the probabilities of a patient's cases to one, for a target that
    belongs to the patient; else each case counts. Means go over tasks, then sites.
    """
    means = mean_over_patients(scores)
    selected = {name: means[name] for name in (METRIC, *SCORES) if name in means}
    return selected | _means(_discriminations(scores, whole=whole, specificity=specificity))


def _discriminations(
    scores: Sequence[CaseScore], *, whole: bool, specificity: float
) -> dict[str, list[dict[str, float]]]:
    """Return the scores of each task, by site."""
    by_task: dict[tuple[str, str], list[CaseScore]] = defaultdict(list)
    for score in scores:
        by_task[score.site, score.task].append(score)
    by_site: dict[str, list[dict[str, float]]] = defaultdict(list)
    for (site, _), task_scores in by_task.items():
        by_site[site].append(_discrimination(*_pool(task_scores, whole=whole), specificity))
    return by_site


def _discrimination(
    predicted_N: FloatArray, label_N: FloatArray, specificity: float
) -> dict[str, float]:
    return {
        "auc": auc(predicted_N, label_N),
        "balanced_accuracy": balanced_accuracy(predicted_N, label_N),
        f"sensitivity_at_{round(100 * specificity)}": sensitivity_at(
            predicted_N, label_N, specificity=specificity
        ),
    }


def _pool(scores: Sequence[CaseScore], *, whole: bool) -> tuple[FloatArray, FloatArray]:
    pairs: dict[tuple[str, str], list[tuple[float, float]]] = defaultdict(list)
    for score in scores:
        key = (score.patient, "" if whole else score.case)
        pairs[key].append((score.values["probability"], score.values["label"]))
    predicted, labels = np.array([np.mean(cases, axis=0) for cases in pairs.values()], np.float64).T
    return predicted, labels


def _means(by_site: Mapping[str, Sequence[Mapping[str, float]]]) -> dict[str, float]:
    names = dict.fromkeys(n for tasks in by_site.values() for task in tasks for n in task)
    sites = {n: [_mean(task[n] for task in tasks) for tasks in by_site.values()] for n in names}
    return {n: _mean(values) for n, values in sites.items() if not all(map(isnan, values))}


def _mean(values: Iterable[float]) -> float:
    """Return the mean of the defined values, nan where there are none."""
    defined = [value for value in values if not isnan(value)]
    return fmean(defined) if defined else float("nan")
