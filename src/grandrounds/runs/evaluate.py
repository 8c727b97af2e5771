"""A finished run's models are tested here at any site, and nothing trains."""

from collections import defaultdict
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import torch
from torch import Tensor

from grandrounds.core.device import Machine, deterministic
from grandrounds.core.errors import BadSite
from grandrounds.core.messages import CaseScore
from grandrounds.core.names import POOLED
from grandrounds.core.run_folder import RunFolder
from grandrounds.core.weights import Weights
from grandrounds.data.cohort import Cohort
from grandrounds.runs.build import build_trainer, first_weights
from grandrounds.runs.costs import RunPlan, plan_run
from grandrounds.runs.folder import TrainedRun
from grandrounds.runs.site_data import NewSite, find_site, open_sites
from grandrounds.runs.tables import write_matrix, write_scores
from grandrounds.site.evaluation import case_scores, score_examples
from grandrounds.site.training import Trainer
from grandrounds.study.site_file import SiteSource, read_site
from grandrounds.study.study import Study
from grandrounds.tasks.task import Batch, Examples

Scores: TypeAlias = Sequence[CaseScore]
Means: TypeAlias = dict[str, dict[str, float]]  # site -> metric -> mean
TEST_PATIENTS = "its test patients"
ALL_PATIENTS = "all its patients, as it did not train"
HELD_OUT_PATIENTS = f"{ALL_PATIENTS}; unseen.csv has its test patients only"
_NO_READER = ""  # views each case as its own site does


@dataclass(frozen=True)
class ModelScorer:
    """Scores the models of a finished run with one trainer."""

    plan: RunPlan
    machine: Machine
    trainer: Trainer

    @property
    def first_weights(self) -> Weights:
        """Make the weights before any training, with which a site starts that never trained."""
        return first_weights(self.plan, self.machine)

    def scores(self, weights: Weights, cohorts: Sequence[Cohort], *, reader: str) -> Scores:
        """Score a model on the test cases of sites, each viewed as a case of site `reader`."""
        task = self.plan.task.viewed_by(reader) if reader else self.plan.task
        self.trainer.load(weights)
        return score_examples(self.trainer, task, task.evaluation_examples(cohorts, "test"))


@dataclass(frozen=True, eq=False)
class Member:
    """One of several models whose predictions are averaged: its site, and that site's tasks."""

    site: str
    tasks: tuple[str, ...]
    weights: Weights

    def has(self, task: str) -> bool:
        return "".join(task.split()) in ("".join(own.split()) for own in self.tasks)


def mean_scores(scorer: ModelScorer, members: Sequence[Member], cohort: Cohort) -> Scores:
    """Score the mean of the predictions of all members that have a test case's task.

    Images are averaged, and so are probabilities, before any threshold. Each member sees a case as
    one of its own site.
    """
    task = scorer.plan.task
    examples = task.evaluation_examples([cohort], "test")
    views = {m: task.viewed_by(m.site).evaluation_examples([cohort], "test") for m in members}
    groups: dict[tuple[Member, ...], list[int]] = defaultdict(list)
    for index in range(len(examples)):
        label = examples.case(index).task
        groups[tuple(member for member in members if member.has(label))].append(index)
    found: dict[int, CaseScore] = {}
    for serving, indices in groups.items():
        for start in range(0, len(indices), task.cases_at_once):
            chunk = indices[start : start + task.cases_at_once]
            mean, batch = _mean_prediction(scorer, {m: views[m] for m in serving}, chunk)
            found |= zip(chunk, case_scores(task, examples, chunk, mean, batch), strict=True)
    return [found[index] for index in range(len(examples))]


@torch.no_grad()
def _mean_prediction(
    scorer: ModelScorer, views: Mapping[Member, Examples], chunk: Sequence[int]
) -> tuple[Tensor, Batch]:
    """Return the members' mean prediction for some cases, and these with what they are held to."""
    task, trainer = scorer.plan.task, scorer.trainer
    predictions, batch = list[Tensor](), Batch()
    for member, view in views.items():
        trainer.load(member.weights)
        batch = trainer.to_device(view.batch(chunk, None))
        predictions.append(task.predict(trainer.model, batch))
    return torch.stack(predictions).mean(0), batch


@contextmanager
def model_scorer(study: Study, **new_sites: tuple[str, ...]) -> Generator[ModelScorer, None, None]:
    """Build a scorer for a study's network; `new_sites` maps other sites to their tasks."""
    plan, machine = plan_run(study, **new_sites), study.machine()
    with deterministic(machine):
        yield ModelScorer(plan, machine, build_trainer(plan, machine))


def mean_matrix(run: TrainedRun, paths: Sequence[Path]) -> dict[str, Means]:
    """Return the mean scores of every site's model at every site; `paths` are real sites' files."""
    scores = matrix(run, [read_site(path) for path in paths])
    return {f"model of {site}": _means(run, site_scores) for site, site_scores in scores.items()}


def matrix(run: TrainedRun, files: Sequence[SiteSource]) -> dict[str, Scores]:
    """Score the model of every site on the test cases of every site, held-out ones too.

    It needs all data in one place, as a simulation has. Writes matrix.csv.
    """
    site_data = open_sites(run.study, files)
    cohorts = [cohort for data in site_data.values() for cohort in data.cohorts]
    with model_scorer(run.study) as scorer:
        found = {
            site: scorer.scores(
                run.model_weights(site), cohorts, reader=_NO_READER if site == POOLED else site
            )
            for site in run.models
        }
    write_matrix(RunFolder(run.folder).matrix, found, run.score_label)
    return found


def means_at_sites(run: TrainedRun, paths: Sequence[Path]) -> Means:
    """Return the mean scores, at each of these sites, of the model that the site would use."""
    found = [score_at_site(run, find_site(run.study, str(path))) for path in paths]
    return {site: mean for scores in found for site, mean in _means(run, scores).items()}


def patients_scored(run: TrainedRun, paths: Sequence[Path]) -> dict[str, str]:
    """Return, for each of these sites, which of its patients `means_at_sites` scores."""
    study = run.study
    return {
        name: TEST_PATIENTS
        if name in study.trainers
        else (HELD_OUT_PATIENTS if name in study.held_out else ALL_PATIENTS)
        for name in (find_site(study, str(path)).name for path in paths)
    }


def score_at_site(run: TrainedRun, new_site: NewSite) -> Scores:
    """Score the model that a site would use, on the site's own cases.

    A site that trained uses its own, on its test patients. One that never did has the shared part
    and the first weights of what stays private, and is tested on all its patients. Writes
    evaluated/NAME.csv. Raises `BadSite`.
    """
    study, name = run.study, new_site.name
    known = name in study.trainers
    cohort = new_site.cohort(study, "test") if known else new_site.all_tested(study)
    with model_scorer(study, **new_site.unknown_to(study)) as scorer:
        weights = (
            run.model_weights(name) if name in run.models else weights_for_new_site(run, scorer)
        )
        found = scorer.scores(weights, [cohort], reader=_NO_READER)
    write_scores(RunFolder(run.folder).evaluated(name), found, run.score_label)
    return found


def weights_for_new_site(run: TrainedRun, scorer: ModelScorer) -> Weights:
    """Return the weights for a site that never trained. Raises `BadSite` if nothing is shared."""
    if run.models == (POOLED,):
        return run.model_weights(POOLED)
    shared = run.shared()
    if not shared:
        raise BadSite(
            f"{run.folder}: method '{run.study.method.kind}' shares nothing, so there is no model "
            "for a site that did not train"
        )
    return scorer.first_weights | shared


def _means(run: TrainedRun, scores: Scores) -> Means:
    sites = dict.fromkeys(score.site for score in scores)
    task = run.study.make_task()
    return {site: task.summary([s for s in scores if s.site == site]) for site in sites}
