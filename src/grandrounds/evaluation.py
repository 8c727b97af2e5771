"""Scoring a model on a site's cases, and choosing by rule the pictures that a report shows."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from grandrounds.bench import Bench
from grandrounds.messages import CaseScore
from grandrounds.metrics.summary import patient_means
from grandrounds.tasks.task import Examples, Picture, Task


def scored(bench: Bench, task: Task, examples: Examples) -> tuple[CaseScore, ...]:
    """Score every example, in fp32 and evaluation mode."""
    size = task.cases_at_once
    starts = range(0, len(examples), size)
    chunks = [range(start, min(start + size, len(examples))) for start in starts]
    return tuple(score for chunk in chunks for score in _scored_batch(bench, task, examples, chunk))


@torch.no_grad()
def _scored_batch(bench: Bench, task: Task, examples: Examples, chunk: range) -> list[CaseScore]:
    batch = bench.place(examples.batch(chunk, None))
    values = task.score(task.predict(bench.model, batch), batch)
    rows = [dict(zip(values, row, strict=True)) for row in _transposed(list(values.values()))]
    cases = [examples.case(index) for index in chunk]
    return [
        CaseScore(site=c.site, patient=c.patient, case=c.case, task=c.task, values=row)
        for c, row in zip(cases, rows, strict=True)
    ]


def _transposed(columns: Sequence[torch.Tensor]) -> list[list[float]]:
    rows = torch.stack([column.cpu() for column in columns], 1)
    return rows.tolist()  # pyright: ignore[reportUnknownMemberType, reportUnknownVariableType]


@dataclass(frozen=True)
class Panel:
    """The picture of one task at one site: the middle slice of the patient in the middle.

    The order is that of the pseudonyms, so the choice knows no score and is the same for every arm.
    """

    task: str
    patient: str
    value: float
    picture: Picture


@torch.no_grad()
def panels(
    bench: Bench, task: Task, examples: Examples, scores: Sequence[CaseScore]
) -> dict[str, list[Panel]]:
    """Make each site's panels from its scores, one for each of its tasks."""
    by_task: dict[tuple[str, str], list[int]] = defaultdict(list)
    for index, score in enumerate(scores):
        by_task[score.site, score.task].append(index)
    found: dict[str, list[Panel]] = defaultdict(list)
    for (site, label), indices in by_task.items():
        chosen, value = _middle_patient([scores[i] for i in indices], task.metric)
        own = [i for i in indices if scores[i].patient == chosen]
        batch = bench.place(examples.batch([own[len(own) // 2]], None))
        picture = task.picture(task.predict(bench.model, batch), batch)
        found[site].append(Panel(label, chosen, value, picture))
    return dict(found)


def _middle_patient(scores: Sequence[CaseScore], metric: str) -> tuple[str, float]:
    means = {patient: value for (*_, patient), value in patient_means(scores, metric).items()}
    chosen = sorted(means)[(len(means) - 1) // 2]
    return chosen, means[chosen]


def save_panels(path: Path, made: Sequence[Panel]) -> None:
    """Write panels to an .npz file that needs no pickle to be read."""
    arrays: dict[str, np.ndarray] = {}
    for number, panel in enumerate(made):
        arrays |= {f"{number}/{name}": image for name, image in panel.picture.items()}
        arrays[f"{number}/label"] = np.array(panel.task)
        arrays[f"{number}/patient"] = np.array(panel.patient)
        arrays[f"{number}/value"] = np.array(panel.value)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        np.savez_compressed(file, **arrays)  # pyright: ignore[reportArgumentType]
