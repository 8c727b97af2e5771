"""A site scores its cases, and chooses by a rule the pictures that a report may show."""

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
    """Scores a site's cases, and saves its pictures."""

    site_model: SiteModel

    def evaluate(self, request: Evaluate) -> Reply:
        """Score the model that a request names."""
        site_model, site = self.site_model, self.site_model.site
        examples = site.cases(cast(SplitName, request.split))
        site_model.trainer.load(
            site_model.store.load_tuned() if request.tuned else site_model.local_model(request)
        )
        scores = score_examples(site_model.trainer, site.task, examples)
        return self.report(
            request,
            examples,
            scores,
            partial(predict_picture, site_model.trainer, site.task, examples),
        )

    def validation_score(self) -> float | None:
        """Return the validation score of the model in memory; None without cases."""
        task = self.site_model.site.task
        scores = score_examples(
            self.site_model.trainer, task, self.site_model.site.cases("validation")
        )
        return task.summary(scores).get(task.metric)

    def report(
        self,
        request: Evaluate,
        examples: Examples,
        scores: Sequence[CaseScore],
        picture: Callable[[int], Picture],
    ) -> Reply:
        """Return the reply with these scores; `picture` shows an example by number.

        Pictures are not part of the reply. They are saved in the folder of each case's site, if
        this site may show any.
        """
        site = self.site_model.site
        if request.cases and site.shows_images:
            for name, of_site in panels(site.task, examples, scores, picture).items():
                save_panels(SiteFolder(site.folder).beside(name).panels, of_site)
        if request.split == "validation":
            self.site_model.store.note_validation(request.round, scores_by_task(site.task, scores))
        return Reply(
            site=site.name,
            round=request.round,
            cases=len(scores),
            metrics=site.task.summary(scores),
            scores=tuple(scores) if request.cases else (),
        )


def scores_by_task(task: Task, scores: Sequence[CaseScore]) -> dict[tuple[str, str], float]:
    """Return the score that chooses the best round, of each (site, task)."""
    cases: dict[tuple[str, str], list[CaseScore]] = defaultdict(list)
    for score in scores:
        cases[score.site, score.task].append(score)
    found = {key: task.summary(each) for key, each in cases.items()}
    return {key: each[task.metric] for key, each in found.items() if task.metric in each}


def score_examples(trainer: Trainer, task: Task, examples: Examples) -> tuple[CaseScore, ...]:
    """Score every example, in fp32 and evaluation mode."""
    chunks = evaluation_batches(task, examples)
    return tuple(
        score for chunk in chunks for score in _scored_batch(trainer, task, examples, chunk)
    )


def evaluation_batches(task: Task, examples: Examples) -> list[range]:
    """Return the indices of examples in the batches in which they are scored."""
    size = task.cases_at_once
    starts = range(0, len(examples), size)
    return [range(start, min(start + size, len(examples))) for start in starts]


@torch.no_grad()
def _scored_batch(
    trainer: Trainer, task: Task, examples: Examples, chunk: range
) -> list[CaseScore]:
    batch = trainer.to_device(examples.batch(chunk, None))
    return case_scores(task, examples, chunk, task.predict(trainer.model, batch), batch)


def case_scores(
    task: Task, examples: Examples, chunk: Sequence[int], prediction: torch.Tensor, batch: Batch
) -> list[CaseScore]:
    """Score the predictions of one batch of examples. Raises `ValueError` unless each has one."""
    values = task.score(prediction, batch)
    for name, column in values.items():
        if column.shape != (len(chunk),):
            raise ValueError(
                f"score '{name}' has the shape {tuple(column.shape)} for {len(chunk)} cases; it "
                f"must be ({len(chunk)},), one for each"
            )
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

    Every test patient has one, so that a report can choose among them by a rule.
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
    """Return each site's panels, one for each patient and task that has pictures.

    `picture` shows an example by number.
    """
    pictures = {index: picture(index) for index in panel_examples(examples)}
    means = patient_means(scores, task.metric) if any(pictures.values()) else {}
    by_site: dict[str, list[Panel]] = defaultdict(list)
    for index in (index for index, made in pictures.items() if made):
        case = examples.case(index)
        value = means[case.site, case.task, case.patient]
        by_site[case.site].append(Panel(case.task, case.patient, value, pictures[index]))
    return dict(by_site)


@torch.no_grad()
def predict_picture(trainer: Trainer, task: Task, examples: Examples, index: int) -> Picture:
    """Return the picture of what the model in memory predicts for one example."""
    batch = trainer.to_device(examples.batch([index], None))
    return task.picture(task.predict(trainer.model, batch), batch)


def panel_examples(examples: Examples) -> tuple[int, ...]:
    """Return the examples that a report may show: the middle one of each site, task and patient."""
    by_patient: dict[tuple[str, str, str], list[int]] = defaultdict(list)
    for index in range(len(examples)):
        case = examples.case(index)
        by_patient[case.site, case.task, case.patient].append(index)
    return tuple(indices[len(indices) // 2] for indices in by_patient.values())


def save_panels(path: Path, panels: Sequence[Panel]) -> None:
    """Write panels to an .npz file, without pickle."""
    arrays: dict[str, np.ndarray] = {}
    for number, panel in enumerate(panels):
        arrays |= {f"{number}/{name}": image for name, image in panel.picture.items()}
        arrays[f"{number}/label"] = np.array(panel.task)
        arrays[f"{number}/patient"] = np.array(panel.patient)
        arrays[f"{number}/value"] = np.array(panel.value)
    content = BytesIO()
    np.savez_compressed(content, **arrays)  # pyright: ignore[reportArgumentType]
    write_bytes(path, content.getvalue(), private=True)
