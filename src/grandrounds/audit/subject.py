"""What an audit attacks: one site's part of a finished run, opened where its data is.

Shapes: N patient of training or test, in the order of `AuditedSite.members`.
"""

from collections import defaultdict
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from statistics import fmean
from typing import TypeAlias

import numpy as np
import torch
from torch import Tensor

from grandrounds.audit.exchangeability import Members, Values
from grandrounds.audit.memorisation import CopyTest, copy_test, joined_tests
from grandrounds.core.errors import BadSite
from grandrounds.core.messages import CaseScore
from grandrounds.core.names import POOLED
from grandrounds.core.run_folder import ComparisonFolder, comparison_of
from grandrounds.core.weights import Weights
from grandrounds.data.cohort import SPLITS, SplitName
from grandrounds.runs.evaluate import ModelScorer, model_scorer, weights_for_new_site
from grandrounds.runs.folder import TrainedRun
from grandrounds.runs.site_data import SiteData, open_sites
from grandrounds.site.evaluation import evaluation_batches, score_examples
from grandrounds.study.site_file import SiteFile
from grandrounds.tasks.synthesis.networks import unit
from grandrounds.tasks.synthesis.task import SynthesisTask
from grandrounds.tasks.task import Task

Images: TypeAlias = dict[str, dict[str, Tensor]]  # of a task's label, of a patient
COMPARED_SLICES = 6  # of a patient and task whose synthetic images are compared, evenly chosen


@dataclass(frozen=True)
class ReadModel:
    """Weights, and the site as whose the model reads every case."""

    weights: Weights
    reader: str


@dataclass(frozen=True)
class AuditedSite:
    """A site's data, its tested model, and models that cannot know who of its patients trained."""

    run: TrainedRun
    scorer: ModelScorer
    data: SiteData

    @property
    def name(self) -> str:
        return self.data.name

    @property
    def task(self) -> Task:
        return self.scorer.plan.task

    @cached_property
    def tested(self) -> ReadModel:
        """Return the tested model of the site, or that of pooled data."""
        holder = POOLED if POOLED in self.run.models else self.name
        return ReadModel(self.run.model_weights(holder), self.name)

    @property
    def untrained(self) -> ReadModel:
        """Return the model before any training."""
        return ReadModel(self.scorer.first_weights, self.name)

    @cached_property
    def unseen(self) -> tuple[ReadModel, ...]:
        """Return models of the run, or of its comparison, that never saw this site's patients."""
        return tuple(models_without(self.run, self.name, self.scorer, self.data.ready.simulated))

    @cached_property
    def trained(self) -> Mapping[str, bool]:
        """Map the patients of training and test, by pseudonym, to whether they trained."""
        found: dict[str, bool] = {}
        for split in ("train", "test"):
            examples = self.task.evaluation_examples(self.data.cohorts, split)
            cases = (examples.case(index) for index in range(len(examples)))
            found |= {case.patient: split == "train" for case in cases}
        return found

    @property
    def members(self) -> Members:
        """Return who trained, (N,)."""
        return np.array(list(self.trained.values()), bool)

    def fits(self, model: ReadModel) -> Values:
        """Return how well a model fits each patient of training and test, (N,): higher is better.

        It is the score that the study watches, averaged over a patient's cases of each task first.
        """
        task = self.task.viewed_by(model.reader)
        self.scorer.trainer.load(model.weights)
        scores = [
            score
            for split in ("train", "test")
            for score in score_examples(
                self.scorer.trainer, task, task.evaluation_examples(self.data.cohorts, split)
            )
        ]
        return np.array([_mean_fit(scores, name, task.metric) for name in self.trained])

    def images(self, model: ReadModel) -> tuple[Images, Images]:
        """Return a model's synthetic images and the real ones, empty where it makes none."""
        task = self.task
        if not isinstance(task, SynthesisTask):
            return {}, {}
        self.scorer.trainer.load(model.weights)
        return _images(self, task.viewed_by(model.reader))

    def copies(self, made: Images, real: Images) -> CopyTest:
        """Compare synthetic images with real ones. Raises `BadSite` where patients lack a task."""
        tests = [copy_test(made[label], real[label], self._serving(real[label])) for label in made]
        return joined_tests(tests)

    def _serving(self, real: Mapping[str, Tensor]) -> Mapping[str, bool]:
        lacking = [name for name in self.trained if name not in real]
        if lacking:
            raise BadSite(
                f"site '{self.name}': {len(lacking)} patients lack one of its tasks, and patients "
                "are only compared where all have all; audit a site whose sessions are complete"
            )
        return self.trained


def _mean_fit(scores: Sequence[CaseScore], patient: str, metric: str) -> float:
    by_task: dict[str, list[float]] = defaultdict(list)
    for score in scores:
        if score.patient == patient:
            by_task[score.task].append(score.values[metric])
    return fmean(fmean(each) for each in by_task.values())


@torch.no_grad()
def _images(site: AuditedSite, task: SynthesisTask) -> tuple[Images, Images]:
    """Return synthetic and real images in [0, 1], (B, 1, H, W), by task and patient."""
    made: dict[str, dict[str, list[Tensor]]] = defaultdict(lambda: defaultdict(list))
    real: dict[str, dict[str, list[Tensor]]] = defaultdict(lambda: defaultdict(list))
    trainer = site.scorer.trainer
    for split in SPLITS:
        examples = task.evaluation_examples(site.data.cohorts, split)
        for chunk in evaluation_batches(task, examples):
            batch = trainer.to_device(examples.batch(chunk, None))
            predicted, targets = (
                task.predict(trainer.model, batch).cpu(),
                unit(batch["target"]).cpu(),
            )
            for index, one, other in zip(chunk, predicted, targets, strict=True):
                case = examples.case(index)
                made[case.task][case.patient].append(one)
                real[case.task][case.patient].append(other)
    return _thinned(made), _thinned(real)


def _thinned(found: Mapping[str, Mapping[str, list[Tensor]]]) -> Images:
    return {
        label: {name: torch.stack(_evenly(images)) for name, images in patients.items()}
        for label, patients in found.items()
    }


def _evenly(images: Sequence[Tensor]) -> list[Tensor]:
    chosen = np.linspace(0, len(images) - 1, min(len(images), COMPARED_SLICES)).round()
    return [images[int(place)] for place in chosen]


def models_without(
    run: TrainedRun, site: str, scorer: ModelScorer, simulated: bool
) -> Iterator[ReadModel]:
    """Yield models of one network that never saw a site's patients.

    They are other sites' models where every site trains alone; those of runs without the site; and,
    in a simulation, those of other seeds, which have other patients.
    """
    yield from _others_alone(run, site)
    above = comparison_of(run.folder)
    if above is None:
        return
    for folder in above[0].all_trained():
        path = folder.path
        if path.resolve() == run.folder.resolve() or not folder.scores.exists():
            continue
        other = TrainedRun(path)
        if other.study.task != run.study.task or POOLED in other.models:
            continue
        if other.study.seed == run.study.seed:
            yield from _others_alone(other, site)
        if _without(path, above[0]) == site:
            yield ReadModel(weights_for_new_site(other, scorer), site)
        elif simulated and other.study.seed != run.study.seed and site in other.models:
            yield ReadModel(other.model_weights(site), site)


def _others_alone(run: TrainedRun, site: str) -> Iterator[ReadModel]:
    if run.study.build_method().sharing().alone:
        others = [name for name in run.models if name != site]
        yield from (ReadModel(run.model_weights(name), name) for name in others)


def _without(run: Path, comparison: ComparisonFolder) -> str:
    parts = run.resolve().relative_to(comparison.path.resolve()).parts
    return parts[1] if parts[0] == "without" else ""


@contextmanager
def opened_site(
    run: TrainedRun, name: str, file: SiteFile | None
) -> Generator[AuditedSite, None, None]:
    """Open a site of a run for its audit. Raises `BadSite` and `BadImage`."""
    study = run.study
    if name not in study.trainers:
        raise BadSite(
            f"{run.folder}: no site '{name}' trained; those that did are "
            f"{', '.join(study.trainers)}"
        )
    data = open_sites(study, () if file is None else (file,), only=(name,))[name]
    with model_scorer(study) as scorer:
        yield AuditedSite(run, scorer, data)


def splits_counted(site: AuditedSite) -> dict[SplitName, int]:
    """Count the site's patients by split."""
    return {
        split: len({p for cohort in site.data.cohorts for p in cohort.patients(split)})
        for split in SPLITS
    }
