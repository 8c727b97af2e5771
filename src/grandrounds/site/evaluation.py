"""Scoring a model on a site's cases, and choosing by rule the pictures that a report shows."""

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import cast

import numpy as np
import torch

from grandrounds.core.files import write_bytes
from grandrounds.core.messages import CaseScore, Evaluate, Reply
from grandrounds.core.run_folder import SiteFolder
from grandrounds.data.cohort import SplitName
from grandrounds.site.model_state import SiteModel
from grandrounds.site.training import Trainer
from grandrounds.tasks.metrics import patient_means
from grandrounds.tasks.task import Batch, Examples, Picture, Task


@dataclass(frozen=True)
class Evaluator:
    """Scores a site's cases, and keeps its pictures."""

    desk: SiteModel

    def take(self, request: Evaluate) -> Reply:
        """Score the model that a request is about."""
        desk, site = self.desk, self.desk.site
        examples = site.cases(cast(SplitName, request.split))
        desk.bench.load(desk.kept.load_tuned() if request.tuned else desk.local_model(request))
        scores = score_examples(desk.bench, site.task, examples)
        return self.report(
            request, examples, scores, partial(predict_picture, desk.bench, site.task, examples)
        )

    def trained(self) -> float | None:
        """Return the validation score of the model on the bench; none without cases."""
        task = self.desk.site.task
        scores = score_examples(self.desk.bench, task, self.desk.site.cases("validation"))
        return task.summary(scores).get(task.metric)

    def report(
        self,
        request: Evaluate,
        examples: Examples,
        scores: Sequence[CaseScore],
        picture: Callable[[int], Picture],
    ) -> Reply:
        """Report scores that were made; `picture` shows an example by number.

        Pictures are no part of the reply. They go below the folder of all sites, where each has its
        own, if the site shows any.
        """
        site = self.desk.site
        if request.cases and site.shows_images:
            for name, made in panels(site.task, examples, scores, picture).items():
                save_panels(SiteFolder(site.folder.parent / name).panels, made)
        return Reply(
            site=site.name,
            round=request.round,
            cases=len(scores),
            metrics=site.task.summary(scores),
            scores=tuple(scores) if request.cases else (),
        )


def score_examples(bench: Trainer, task: Task, examples: Examples) -> tuple[CaseScore, ...]:
    """Score every example, in fp32 and evaluation mode."""
    chunks = evaluation_batches(task, examples)
    return tuple(score for chunk in chunks for score in _scored_batch(bench, task, examples, chunk))


def evaluation_batches(task: Task, examples: Examples) -> list[range]:
    """Deal examples out in the batches in which they are scored."""
    size = task.cases_at_once
    starts = range(0, len(examples), size)
    return [range(start, min(start + size, len(examples))) for start in starts]


@torch.no_grad()
def _scored_batch(bench: Trainer, task: Task, examples: Examples, chunk: range) -> list[CaseScore]:
    batch = bench.to_device(examples.batch(chunk, None))
    return case_scores(task, examples, chunk, task.predict(bench.model, batch), batch)


def case_scores(
    task: Task, examples: Examples, chunk: range, prediction: torch.Tensor, batch: Batch
) -> list[CaseScore]:
    """Score the predictions of one batch of examples."""
    values = task.score(prediction, batch)
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
    """The picture of one task at one site: the middle slice of a patient.

    Every test patient has one, so that who chooses among them can do so by a rule.
    """

    task: str
    patient: str
    value: float
    picture: Picture


def panels(
    task: Task,
    examples: Examples,
    scores: Sequence[CaseScore],
    picture: Callable[[int], Picture],
) -> dict[str, list[Panel]]:
    """Make each site's panels, one for each of its tasks that has pictures.

    `picture` shows an example by number.
    """
    pictures = {index: picture(index) for index in panel_examples(examples)}
    means = patient_means(scores, task.metric) if any(pictures.values()) else {}
    found: dict[str, list[Panel]] = defaultdict(list)
    for index in (index for index, made in pictures.items() if made):
        case = examples.case(index)
        value = means[case.site, case.task, case.patient]
        found[case.site].append(Panel(case.task, case.patient, value, pictures[index]))
    return dict(found)


@torch.no_grad()
def predict_picture(bench: Trainer, task: Task, examples: Examples, index: int) -> Picture:
    """Show what the model on the bench predicts of one example."""
    batch = bench.to_device(examples.batch([index], None))
    return task.picture(task.predict(bench.model, batch), batch)


def panel_examples(examples: Examples) -> tuple[int, ...]:
    """Choose the examples that a report may show: of each site, task and patient the middle one."""
    by_patient: dict[tuple[str, str, str], list[int]] = defaultdict(list)
    for index in range(len(examples)):
        case = examples.case(index)
        by_patient[case.site, case.task, case.patient].append(index)
    return tuple(own[len(own) // 2] for own in by_patient.values())


def save_panels(path: Path, made: Sequence[Panel]) -> None:
    """Write panels to an .npz file that needs no pickle to be read."""
    arrays: dict[str, np.ndarray] = {}
    for number, panel in enumerate(made):
        arrays |= {f"{number}/{name}": image for name, image in panel.picture.items()}
        arrays[f"{number}/label"] = np.array(panel.task)
        arrays[f"{number}/patient"] = np.array(panel.patient)
        arrays[f"{number}/value"] = np.array(panel.value)
    content = BytesIO()
    np.savez_compressed(content, **arrays)  # pyright: ignore[reportArgumentType]
    write_bytes(path, content.getvalue())
