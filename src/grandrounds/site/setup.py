"""A site consists of its data, its task, the model in memory and its folder on disk."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch

from grandrounds.algorithms.method import Method
from grandrounds.core.messages import Forward, Request, Tail
from grandrounds.core.seeds import seed_for
from grandrounds.core.weights import Filter, Weights
from grandrounds.data.cohort import Cohort, SplitName, data_digest
from grandrounds.site.cut import Cut
from grandrounds.site.record_training import PatientLots
from grandrounds.site.releases import SitePrivacy
from grandrounds.site.training import BatchSource, Trainer, Training
from grandrounds.tasks.task import Examples, Task


@dataclass(frozen=True, kw_only=True)
class SiteSetup:
    """What a site has, the same in every round, and what a round needs of it.

    `cohorts` is the site's own data (several only where a comparison pools them). `travels` selects
    the tensors that may leave, with the optimiser's state where `moments_travel`. `method` trains,
    and combines updates where this site leads. `first_weights` returns the model before any
    training; `trainer` holds the model in memory and may be shared with other sites of the same
    process. `cut` says which stages of a split network are the site's. `protocols` (JSON) says how
    the site usually scans, where the network reads that: it is kept beside the model. `pixel` is
    the size of prepared pixels in mm. `privacy` says how patients are protected, if they are.
    """

    name: str
    task: Task
    cohorts: tuple[Cohort, ...]
    training: Training
    rounds: int
    seed: int
    travels: Filter
    method: Method
    first_weights: Callable[[], Weights]
    trainer: Trainer
    folder: Path
    moments_travel: bool = False
    shows_images: bool = True
    cut: Cut | None = None
    protocols: str = ""
    pixel: tuple[float, float] = (1.0, 1.0)
    privacy: SitePrivacy | None = None

    @cached_property
    def data_digest(self) -> str:
        """Return the digest of the site's data, which does not leave it."""
        return data_digest(self.cohorts)

    @cached_property
    def training_examples(self) -> Examples:
        return self.task.training_examples(self.cohorts)

    @cached_property
    def lots(self) -> PatientLots:
        """Return the site's patients, of whom some are drawn for each step of private training."""
        return PatientLots.of(self.training_examples, self.training.batch_size)

    def cases(self, split: SplitName) -> Examples:
        """Return every case of a split."""
        return self.task.evaluation_examples(self.cohorts, split)

    @cached_property
    def uses(self) -> Filter:
        """Return the filter of the tensors that the site's tasks need, without a server's."""
        uses = self.task.uses(self.name)
        return self.cut.at_site(uses) if self.cut else uses

    def learning_rate(self, round: int) -> float:
        """Return the learning rate of a round, counted from 1."""
        return self.training.rate(round, self.rounds)

    def batch_source(self, round: int, task: Task | None = None) -> BatchSource:
        """Return a round's training examples in batches, in the same order at every call.

        They are for the site's task, or for this one, which remembers.
        """
        seed = seed_for(self.seed, self.name, round, "batches")
        generator = torch.Generator().manual_seed(seed)
        return BatchSource(
            task or self.task, self.training_examples, self.training.batch_size, generator
        )

    def answer_seed(self, request: Request) -> int:
        """Return the seed of what an answer draws without a generator, such as dropout."""
        # The name of the request's class is in the seed, as a site gets several in a round:
        # tuning must not draw what training drew. So the names of these classes are data, and
        # another name would change the numbers of every run.
        step = (request.step,) if isinstance(request, Forward | Tail) else ()
        return seed_for(self.seed, self.name, request.round, type(request).__name__, *step)
