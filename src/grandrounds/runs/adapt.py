"""A new site joins a finished federation: it trains its private part and leaves the shared one.

Nothing leaves the site. For comparison, the site also trains a model of its own alone.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from grandrounds.core.errors import BadSite
from grandrounds.core.run_folder import RunFolder
from grandrounds.core.seeds import seed_for
from grandrounds.core.state import write_sealed
from grandrounds.core.weights import Filter, Weights, select
from grandrounds.data.cohort import Cohort
from grandrounds.runs.evaluate import ModelScorer, Scores, model_scorer, weights_for_new_site
from grandrounds.runs.folder import TrainedRun
from grandrounds.runs.site_data import NewSite
from grandrounds.runs.tables import write_scores
from grandrounds.site.training import BatchSource, TrainingLoop, isolated_rng
from grandrounds.study.study import Study

AS_IT_CAME, ADAPTED, ALONE = "as it came", "adapted", "alone"


@dataclass(frozen=True)
class Adaptation:
    """A model at the new site, the number of steps it was trained there, and its scores there."""

    name: str
    steps: int
    weights: Weights
    scores: Scores


def adapt(run: TrainedRun, new_site: NewSite, *, epochs: int) -> tuple[Adaptation, ...]:
    """Train the private part of a site that never trained, for `epochs` epochs.

    Returns the model as received, as adapted, and as the site alone would have trained it from the
    same first weights with the study's rounds; each is scored on the site's test patients. Writes
    adapted/NAME. Raises `BadSite` where the site trained before, or where nothing stays private.
    """
    study, name = run.study, new_site.name
    if name in study.trainers:
        raise BadSite(
            f"{run.folder}: site '{name}' took part in the training and has its own model; adapt "
            "is for sites that did not"
        )
    cohort = new_site.cohort(study, "train", "test")
    with model_scorer(study, **new_site.unknown_to(study)) as scorer:
        shared = _shared(run, scorer)
        joining = JoiningSite(study, scorer, cohort)
        received = weights_for_new_site(run, scorer)
        adaptations = (
            joining.scored(AS_IT_CAME, 0, received),
            joining.adapted(received, epochs, shared),
            joining.alone(),
        )
    _write(run, name, adaptations, shared)
    return adaptations


def _shared(run: TrainedRun, scorer: ModelScorer) -> Filter:
    """Select what a new site leaves as it is. Raises `BadSite` where that is the whole network."""
    plan, travels = scorer.plan, scorer.plan.travels
    everything = plan.task.groups(plan.model)["all"]
    if not any(everything(n) and not travels(n) for n, _ in plan.model.named_parameters()):
        raise BadSite(
            f"{run.folder}: method '{run.study.method.kind}' shares the whole network, so a new "
            "site has nothing of its own to train; `grandrounds evaluate` tests the model as it is"
        )
    return travels


def _write(run: TrainedRun, name: str, adaptations: Sequence[Adaptation], shared: Filter) -> None:
    folder = RunFolder(run.folder).adapted(name)
    for adaptation in adaptations:
        path = folder.path / f"{adaptation.name.replace(' ', '-')}.csv"
        write_scores(path, adaptation.scores, replace(run.score_label, arm=adaptation.name))
        if adaptation.name == ADAPTED:
            private = select(adaptation.weights, lambda tensor: not shared(tensor))
            notes = {"site": name, "steps": str(adaptation.steps)}
            write_sealed(folder.private(), private, notes, private=True)


@dataclass(frozen=True)
class JoiningSite:
    """A site that joins, with a trainer of its own."""

    study: Study
    scorer: ModelScorer
    cohort: Cohort

    def scored(self, name: str, steps: int, weights: Weights) -> Adaptation:
        """Score a model on the site's test patients."""
        scores = self.scorer.scores(weights, [self.cohort], reader="")
        return Adaptation(name, steps, weights, scores)

    def adapted(self, weights: Weights, epochs: int, shared: Filter) -> Adaptation:
        """Train the private part for `epochs` epochs."""
        with self.scorer.trainer.train_only(lambda name: not shared(name)):
            return self._trained(ADAPTED, weights, rounds=epochs, epochs=1)

    def alone(self) -> Adaptation:
        """Train the whole network from the first weights, for the study's rounds and epochs."""
        rounds, epochs = self.study.rounds, self.study.training.epochs
        return self._trained(ALONE, self.scorer.first_weights, rounds=rounds, epochs=epochs)

    def _trained(self, name: str, weights: Weights, *, rounds: int, epochs: int) -> Adaptation:
        trainer, training, steps = self.scorer.trainer, self.study.training, 0
        trainer.load(weights)
        trainer.load_optimizer_state({})
        for round in range(1, rounds + 1):
            trainer.set_rate(training.rate(round, rounds))
            seed = seed_for(self.study.seed, self.cohort.site, round, name)
            with isolated_rng(seed):
                steps += TrainingLoop(trainer, self._source(seed)).train(epochs=epochs).steps
        return self.scored(name, steps, trainer.weights(lambda _: True))

    def _source(self, seed: int) -> BatchSource:
        task = self.scorer.plan.task
        examples = task.training_examples([self.cohort])
        generator = torch.Generator().manual_seed(seed)
        return BatchSource(task, examples, self.study.training.batch_size, generator)
