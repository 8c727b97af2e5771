"""The relations of a task: what every task keeps to, whatever it learns."""

import random
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from torch import Tensor, nn

from grandrounds.algorithms.methods.comparisons import Local
from grandrounds.algorithms.methods.fedavg import FedAvg
from grandrounds.api.run import Data, site_files
from grandrounds.api.study import Source
from grandrounds.core.device import deterministic
from grandrounds.core.errors import BadStudy, SiteFailed
from grandrounds.core.messages import Evaluate
from grandrounds.core.weights import Weights
from grandrounds.data.cohort import SPLITS
from grandrounds.site.evaluation import evaluation_batches
from grandrounds.site.site import Site
from grandrounds.site.training import isolated_rng
from grandrounds.study.checks import complete
from grandrounds.study.file import Table
from grandrounds.study.site_file import SiteSource
from grandrounds.study.study import Study
from grandrounds.tasks import (
    AnyTask,
    Classification,
    Segmentation,
    Synthesis,
    TaskOptions,
    task_class,
)
from grandrounds.tasks.task import Examples, Task
from grandrounds.testing.relations import (
    FINITE,
    RESUMED,
    Relation,
    Theorem,
    first_run,
    in_two_processes,
    try_all,
)
from grandrounds.testing.trial import (
    Record,
    Trial,
    difference,
    same_bits,
    small_table,
    study_in_star,
    with_method,
)

EVERY_TASKS_GROUPS = ("all", "norm", "head", "upper")  # every task has them
LABELS: dict[type[AnyTask], tuple[str, ...]] = {  # at simulated sites
    Segmentation: ("T1w->csf+grey+white",),
    Classification: ("FLAIR->lesion",),
}


@dataclass(frozen=True)
class TaskTrial:
    """A task in a trial, and the record of its first run."""

    trial: Trial
    reference: Record

    @property
    def task(self) -> Task:
        """Return the task of the study's sites."""
        return self.trial.study.make_task()


def check_task(
    task: TaskOptions | type[TaskOptions] | str,
    data: Data | None = None,
    *,
    study: Source | None = None,
) -> tuple[Relation, ...]:
    """Try every relation of a task, to the bit, and return those that hold.

    `task` is the task's options, their class, or a word of the study file, whose network is then
    the smallest. It is tried with FedAvg in a star for two rounds: of two tiny simulated sites,
    where the task can be simulated; of sites with `data`, which maps their names to a folder, a
    table, a site file or a dataset; or on a study of one's own, as `grandrounds.load` takes it.
    Raises `Broken`, an `AssertionError`, with all relations that do not hold, and `BadStudy` or
    `BadSite` where the study cannot have the task.
    """
    files = tuple(site_files(data or ()))
    made = _made(task)
    whole = _study_of(made, files, study)
    with TemporaryDirectory() as folder:
        trial = Trial(type(made).__name__, whole, files, Path(folder))
        return try_all(TASK_RELATIONS, TaskTrial(trial, first_run(trial, breaks=_broken_score)))


def _broken_score(failure: SiteFailed) -> str:
    return _SCORES.name if failure.card.stage == Evaluate.__name__.lower() else ""


def _made(task: TaskOptions | type[TaskOptions] | str) -> TaskOptions:
    if isinstance(task, str):
        return _smallest(task_class(task))
    return task() if isinstance(task, type) else task


def _smallest(kind: type[AnyTask]) -> TaskOptions:
    if kind is Synthesis:
        return study_in_star(None).task
    if kind is Segmentation:
        return Segmentation(channels=(4, 8))
    return Classification(width=4, blocks=2) if kind is Classification else kind()


def _study_of(made: TaskOptions, files: Sequence[SiteSource], source: Source | None) -> Study:
    if source is None:
        source = _study_of_data(made, files) if files else _simulated(made)
    return study_in_star(source, task=made, method=FedAvg)


def _simulated(made: TaskOptions) -> Table:
    table = small_table()
    if isinstance(made, Synthesis):
        return table
    labels = next((labels for kind, labels in LABELS.items() if isinstance(made, kind)), None)
    if labels is None:
        raise BadStudy(
            f"{type(made).__name__} cannot be simulated: give what its sites have, "
            'data = {"oak": FOLDER, "yew": FOLDER}'
        )
    return {**table, "site": [{**site, "tasks": labels} for site in table["site"]]}


def _study_of_data(made: TaskOptions, files: Sequence[SiteSource]) -> Table:
    """Return a small study of sites that have data of their own."""
    label = type(made).__name__.lower()
    return {
        "name": label,
        "rounds": 2,
        "training": {"batch_size": 2, "learning_rate": 1e-3, "device": "cpu"},
        "site": [{"name": each.name, "tasks": [label]} for each in files],
    }


def changed_by_averaging_one(subject: TaskTrial) -> str:
    """Let one site train in a star and alone, and return what differs."""
    whole = subject.trial.study
    first = tuple(site for site in whole.site if site.name == whole.trainers[0])
    trial = subject.trial.of(complete(replace(whole, site=first, holdout_sites=())))
    plan = trial.plan()
    local = with_method(trial.plan(), Local(averaging=plan.method.averaging))
    star, alone = trial.play("one", plan), trial.play("alone", local)
    for number, result in star.rounds.items():
        for site in star.first:
            model = result.state.weights | star.model(site, number)
            if found := difference(alone.model(site, number), model, f"differs in round {number}"):
                return f"a star of one site is not training alone: {found}"
    return ""


def unseeded(subject: TaskTrial) -> str:
    """Build the network where global generators stand elsewhere, and return what differs."""
    task, seed = subject.task, subject.trial.study.training_seed
    with _generators_kept():
        _seed_generators(1)
        before, first = _generators(), _built(task, seed)
        moved = [name for name, state in _generators().items() if state != before[name]]
        _seed_generators(2)
        again, other = _built(task, seed), _built(task, seed + 1)
    if found := difference(first, again, "differs where a global generator stands elsewhere"):
        return f"first weights depend on more than the seed: {found}"
    if moved:
        return f"building the network draws from the global generator of {moved[0]}"
    if not difference(first, other, ""):
        return "first weights are the same for every seed"
    return ""


def _built(task: Task, seed: int) -> Weights:
    return task.build(seed).state_dict()


def _generators() -> dict[str, object]:
    """Return the states of the global generators."""
    kind, keys, *rest = np.random.get_state(legacy=True)  # noqa: NPY002 - it is what others use
    return {
        "torch": torch.get_rng_state().numpy().tobytes(),
        "Python": random.getstate(),
        "numpy": (kind, np.asarray(keys).tobytes(), *rest),
    }


def _seed_generators(seed: int) -> None:
    torch.manual_seed(seed)  # pyright: ignore[reportUnknownMemberType]
    torch.rand(1)  # so that it stands where no seed puts it
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002 - it is what others use


@contextmanager
def _generators_kept() -> Generator[None, None, None]:
    """Put the global generators back afterwards."""
    python, arrays = random.getstate(), np.random.get_state()  # noqa: NPY002 - as above
    with isolated_rng(0):
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(arrays)  # noqa: NPY002 - as above


@dataclass(frozen=True)
class CaseScorer:
    """Scores cases of a site with the model that it trained."""

    site: Site
    examples: Examples

    def scores(self, indices: Sequence[int]) -> dict[str, Tensor]:
        """Score these cases as one batch."""
        trainer, task = self.site.trainer, self.site.task
        batch = trainer.to_device(self.examples.batch(indices, None))
        with torch.no_grad(), isolated_rng(0):
            return task.score(task.predict(trainer.model, batch), batch)

    def name(self, index: int) -> str:
        """Return how a sentence names a case."""
        case = self.examples.case(index)
        return f"case {case.case} of {case.patient}, {case.task}, at site '{case.site}'"


def scored_by_others(subject: TaskTrial) -> str:
    """Score cases in other orders and beside others, and return whose score differs."""
    trial, record = subject.trial, subject.reference
    shared = record.rounds[record.last].state.weights
    with deterministic(trial.study.machine()):
        for site in trial.build("scored", trial.plan()).sites.sites:
            site.trainer.load(shared | record.model(site.name, record.last))
            scorer = CaseScorer(site, site.cases("test"))
            for check in _SCORE_CHECKS:
                if found := check(scorer):
                    return found
    return ""


def _misnamed(scorer: CaseScorer) -> str:
    names = [scorer.examples.case(index) for index in range(len(scorer.examples))]
    twice = next((n for n, name in enumerate(names) if name in names[:n]), None)
    return "" if twice is None else f"two cases have one name: {scorer.name(twice)}"


def _changed_by_order(scorer: CaseScorer) -> str:
    chunks = evaluation_batches(scorer.site.task, scorer.examples)
    there = [scorer.scores(chunk) for chunk in chunks]
    back = [scorer.scores(chunk) for chunk in chunks[::-1]][::-1]
    for chunk, one, other in zip(chunks, there, back, strict=True):
        for row, index in enumerate(chunk):
            if found := _odd_row(one, other, row):
                return f"scored in another order, {scorer.name(index)} has another score ({found})"
    return ""


def _changed_by_company(scorer: CaseScorer) -> str:
    chunk = evaluation_batches(scorer.site.task, scorer.examples)[0][:_COMPANY]
    together = scorer.scores(chunk)
    for row, index in enumerate(chunk):
        by_itself = scorer.scores([index] * len(chunk))
        if found := _odd_row(together, by_itself, row):
            return f"beside other cases, {scorer.name(index)} has another score ({found})"
    return ""


def _odd_row(one: dict[str, Tensor], other: dict[str, Tensor], row: int) -> str:
    if one.keys() != other.keys():
        return f"{', '.join(one)}, and {', '.join(other)}"
    for name, values in one.items():
        if not same_bits(values[row], other[name][row]):
            return f"{name} {float(values[row]):.6g}, and {float(other[name][row]):.6g}"
    return ""


_COMPANY = 8  # cases of one batch that are scored beside others
_SCORE_CHECKS: tuple[Callable[[CaseScorer], str], ...] = (
    _misnamed,
    _changed_by_order,
    _changed_by_company,
)


def mixed_up(subject: TaskTrial) -> str:
    """Return a patient in two splits, or a tensor in no group."""
    trial, task = subject.trial, subject.task
    model = task.build(trial.study.training_seed)
    for site in trial.build("splits", trial.plan()).sites.sites:
        if found := _in_two_splits(site):
            return found
    return next(_ungrouped(task, model), "")


def _in_two_splits(site: Site) -> str:
    seen = dict[str, str]()
    for split in SPLITS:
        examples = site.training_examples if split == "train" else site.cases(split)
        for patient in sorted({examples.case(n).patient for n in range(len(examples))}):
            if seen.setdefault(patient, split) != split:
                return f"patient {patient} of site '{site.name}' is in {seen[patient]} and {split}"
    return ""


def _ungrouped(task: Task, model: nn.Module) -> Iterator[str]:
    groups = task.groups(model)
    for name in EVERY_TASKS_GROUPS:
        if name not in groups:
            known = ", ".join(EVERY_TASKS_GROUPS)
            yield f"its groups lack '{name}', which every task has ({known})"
    names = dict[int, list[str]]()
    for name, tensor in model.state_dict(keep_vars=True).items():
        names.setdefault(id(tensor), []).append(name)
    for known in names.values():  # a layer under several names is in a group under one of them
        if not any(holds(name) for holds in groups.values() for name in known):
            yield f"{known[0]} is in no parameter group, so no method can say where it stays"


_SCORES = Theorem(
    "one score for each case, which depends on no other case",
    "A case has the same scores in any order and beside any other cases.",
    scored_by_others,
)
TASK_RELATIONS: tuple[Theorem[TaskTrial], ...] = (
    FINITE,
    RESUMED,
    in_two_processes(lambda trial: trial.run("processes", processes=2)),
    Theorem(
        "a star of one site = training alone",
        "The mean of one site's model is that model, to the bit.",
        changed_by_averaging_one,
    ),
    Theorem(
        "first weights depend on the seed alone; building leaves the global generator be",
        "A network is built from its seed, whatever was drawn before, and nothing else moves.",
        unseeded,
    ),
    _SCORES,
    Theorem(
        "no patient is in two splits; every tensor is in a group",
        "Nobody trains and is tested, and a method can say of each tensor whether it leaves.",
        mixed_up,
    ),
)
