"""A finished run's models are tested here at any site, and nothing trains."""

from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from grandrounds.core.device import Machine, deterministic
from grandrounds.core.errors import BadSite
from grandrounds.core.messages import CaseScore
from grandrounds.core.run_folder import RunFolder
from grandrounds.core.weights import Weights
from grandrounds.data.cohort import Cohort
from grandrounds.runs.build import build_bench, first_weights
from grandrounds.runs.costs import RunPlan, plan_run
from grandrounds.runs.folder import FinishedRun
from grandrounds.runs.site_data import POOLED, NewSite, find_site, open_sites
from grandrounds.runs.tables import write_matrix, write_scores
from grandrounds.site.evaluation import score_examples
from grandrounds.site.training import Trainer
from grandrounds.study.site_file import SiteFile, read_site
from grandrounds.study.study import Study

Scores: TypeAlias = Sequence[CaseScore]
Means: TypeAlias = dict[str, dict[str, float]]  # site -> metric -> mean
_NOBODY = ""  # reads each case as its own site does


@dataclass(frozen=True)
class ModelScorer:
    """Scores the models of a finished run, on one bench."""

    plan: RunPlan
    machine: Machine
    bench: Trainer

    @property
    def first_weights(self) -> Weights:
        """Make the weights before any training that a site begins with which never trained."""
        return first_weights(self.plan, self.machine)

    def scores(self, weights: Weights, cohorts: Sequence[Cohort], *, reader: str) -> Scores:
        """Score a model on the test cases of sites, each read as the reader's own would be."""
        task = self.plan.task.viewed_by(reader) if reader else self.plan.task
        self.bench.load(weights)
        return score_examples(self.bench, task, task.evaluation_examples(cohorts, "test"))


@contextmanager
def model_scorer(study: Study, **guests: tuple[str, ...]) -> Generator[ModelScorer, None, None]:
    """Set up a bench for a study's network; guests are sites that it never knew."""
    plan, machine = plan_run(study, **guests), study.training.machine()
    with deterministic(machine):
        yield ModelScorer(plan, machine, build_bench(plan, machine))


def mean_matrix(run: FinishedRun, paths: Sequence[Path]) -> dict[str, Means]:
    """Average the scores of every site's model at every site; `paths` are real sites' files."""
    scores = matrix(run, [read_site(path) for path in paths])
    return {f"model of {site}": _means(run, own) for site, own in scores.items()}


def matrix(run: FinishedRun, files: Sequence[SiteFile]) -> dict[str, Scores]:
    """Score the model of every site on the test cases of every site, held-out ones too.

    It needs all data in one place, as a simulation has. Writes matrix.csv.
    """
    opened = open_sites(run.study, files)
    cohorts = [cohort for each in opened.values() for cohort in each.cohorts]
    with model_scorer(run.study) as examiner:
        found = {
            site: examiner.scores(
                run.own(site), cohorts, reader=_NOBODY if site == POOLED else site
            )
            for site in run.models
        }
    write_matrix(RunFolder(run.folder).matrix, found, run.told)
    return found


def means_at_sites(run: FinishedRun, paths: Sequence[Path]) -> Means:
    """Average the scores of the model that each of these sites would use, at the site."""
    found = [score_at_site(run, find_site(run.study, str(path))) for path in paths]
    return {site: mean for scores in found for site, mean in _means(run, scores).items()}


def score_at_site(run: FinishedRun, guest: NewSite) -> Scores:
    """Score the model that a site would use, on the site's own cases.

    A site that trained uses its own, on its test patients. One that never did has the shared part
    and the first weights of what stays private, and is tested on all its patients. Writes
    evaluated/NAME.csv. Raises `BadSite`.
    """
    study, name = run.study, guest.name
    known = name in study.trainers
    cohort = guest.cohort(study, "test") if known else _all_tested(guest.cohort(study))
    with model_scorer(study, **guest.unknown_to(study)) as examiner:
        weights = run.own(name) if name in run.models else weights_for_new_site(run, examiner)
        found = examiner.scores(weights, [cohort], reader=_NOBODY)
    write_scores(RunFolder(run.folder).evaluated(name), found, run.told)
    return found


def weights_for_new_site(run: FinishedRun, examiner: ModelScorer) -> Weights:
    """Give the model that reaches a site which never trained. Raises `BadSite` if none does."""
    if run.models == (POOLED,):
        return run.own(POOLED)
    shared = run.shared()
    if not shared:
        raise BadSite(
            f"{run.folder}: method '{run.study.method.kind}' shares nothing, so there is no model "
            "for a site that did not train"
        )
    return examiner.first_weights | shared


def _all_tested(cohort: Cohort) -> Cohort:
    """Take every patient for a test patient: the site had no part in the training."""
    sessions = tuple(session for split in cohort.splits.values() for session in split)
    return Cohort(cohort.site, {"train": (), "validation": (), "test": sessions})


def _means(run: FinishedRun, scores: Scores) -> Means:
    sites = dict.fromkeys(score.site for score in scores)
    task = run.study.make_task()
    return {site: task.summary([s for s in scores if s.site == site]) for site in sites}
