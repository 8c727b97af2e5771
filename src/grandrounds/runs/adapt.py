"""A new site joins a finished federation: it trains its private part and keeps the shared one.

Nothing leaves the site. Beside it stands what the site would have had by training alone.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from grandrounds.core.errors import BadSite
from grandrounds.core.run_folder import RunFolder
from grandrounds.core.seeds import seed_for
from grandrounds.core.weights import Filter, Weights, select, write
from grandrounds.data.cohort import Cohort
from grandrounds.runs.evaluate import ModelScorer, Scores, model_scorer, weights_for_new_site
from grandrounds.runs.folder import FinishedRun
from grandrounds.runs.site_data import NewSite
from grandrounds.runs.tables import write_scores
from grandrounds.site.training import BatchSource, isolated_rng, train
from grandrounds.study.study import Study

AS_IT_CAME, ADAPTED, ALONE = "as it came", "adapted", "alone"


@dataclass(frozen=True)
class Adaptation:
    """A model at the new site, after so many steps of its own, and its scores there."""

    name: str
    steps: int
    weights: Weights
    scores: Scores


def adapt(run: FinishedRun, guest: NewSite, *, epochs: int) -> tuple[Adaptation, ...]:
    """Let a site that never trained train its private part for some epochs.

    Gives the model as it came, as adapted, and as the site alone would have trained it from the
    same first weights with the study's rounds; each is scored on the site's test patients. Writes
    adapted/NAME. Raises `BadSite` where the site trained before, or where nothing stays private.
    """
    study, name = run.study, guest.name
    if name in study.trainers:
        raise BadSite(
            f"{run.folder}: site '{name}' took part in the training and has its own model; adapt "
            "is for sites that did not"
        )
    cohort = guest.cohort(study, "train", "test")
    with model_scorer(study, **guest.unknown_to(study)) as examiner:
        shared = _shared(run, examiner)
        newcomer = JoiningSite(study, examiner, cohort)
        came = weights_for_new_site(run, examiner)
        found = (
            newcomer.joined(AS_IT_CAME, 0, came),
            newcomer.adapted(came, epochs, shared),
            newcomer.alone(),
        )
    _write(run, name, found, shared)
    return found


def _shared(run: FinishedRun, examiner: ModelScorer) -> Filter:
    """Select what a newcomer leaves as it is. Raises `BadSite` where that is the whole network."""
    plan, travels = examiner.plan, examiner.plan.travels
    everything = plan.task.groups(plan.model)["all"]
    if not any(everything(n) and not travels(n) for n, _ in plan.model.named_parameters()):
        raise BadSite(
            f"{run.folder}: method '{run.study.method.kind}' shares the whole network, so a new "
            "site has nothing of its own to train; `grandrounds evaluate` tests the model as it is"
        )
    return travels


def _write(run: FinishedRun, name: str, found: Sequence[Adaptation], shared: Filter) -> None:
    folder = RunFolder(run.folder).adapted(name)
    for joined in found:
        path = folder.path / f"{joined.name.replace(' ', '-')}.csv"
        write_scores(path, joined.scores, replace(run.told, arm=joined.name))
        if joined.name == ADAPTED:
            own = select(joined.weights, lambda tensor: not shared(tensor))
            write(folder.private(), own, {"site": name, "steps": str(joined.steps)})


@dataclass(frozen=True)
class JoiningSite:
    """A site that joins, at a bench of its own."""

    study: Study
    examiner: ModelScorer
    cohort: Cohort

    def joined(self, name: str, steps: int, weights: Weights) -> Adaptation:
        """Score a model on the site's test patients."""
        scores = self.examiner.scores(weights, [self.cohort], reader="")
        return Adaptation(name, steps, weights, scores)

    def adapted(self, weights: Weights, epochs: int, shared: Filter) -> Adaptation:
        """Train what stays private, for so many epochs."""
        with self.examiner.bench.train_only(lambda name: not shared(name)):
            return self._trained(ADAPTED, weights, rounds=epochs, epochs=1)

    def alone(self) -> Adaptation:
        """Train all of the network from the first weights, for as long as the others did."""
        rounds, epochs = self.study.rounds, self.study.training.epochs
        return self._trained(ALONE, self.examiner.first_weights, rounds=rounds, epochs=epochs)

    def _trained(self, name: str, weights: Weights, *, rounds: int, epochs: int) -> Adaptation:
        bench, training, steps = self.examiner.bench, self.study.training, 0
        bench.load(weights)
        bench.load_optimizer_state({})
        for round in range(1, rounds + 1):
            bench.set_rate(training.rate(round, rounds))
            seed = seed_for(self.study.seed, self.cohort.site, round, name)
            lesson = self._lesson(seed)
            with isolated_rng(seed):
                steps += train(bench, lesson, lesson.batches(epochs=epochs)).steps
        return self.joined(name, steps, bench.weights(lambda _: True))

    def _lesson(self, seed: int) -> BatchSource:
        task = self.examiner.plan.task
        examples = task.training_examples([self.cohort])
        generator = torch.Generator().manual_seed(seed)
        return BatchSource(task, examples, self.study.training.batch_size, generator)
