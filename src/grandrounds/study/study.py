"""A study is what a consortium agrees on, in frozen dataclasses."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal, TypeAlias

from grandrounds.algorithms import DEFAULT_METHOD, TOPOLOGIES, method_class, with_seed
from grandrounds.algorithms.aggregation import Aggregation, Averaging, Rate
from grandrounds.algorithms.method import Method
from grandrounds.algorithms.topology import Topology
from grandrounds.core.device import Machine
from grandrounds.data.availability import needs
from grandrounds.data.elements import Elements
from grandrounds.data.simulation.simulate import Patients, Scanner
from grandrounds.privacy.composition import guards_of
from grandrounds.privacy.settings import Exchange, Privacy
from grandrounds.site.training import Training
from grandrounds.tasks import AnyTask, Segmentation, SupervisedTask, Synthesis
from grandrounds.tasks.task import Task

Option: TypeAlias = bool | int | float | str | tuple[str, ...]


@dataclass(frozen=True)
class Choice:
    """One word of the study file and its options: `kind = "pflsynth"`, `split = "wide"`."""

    kind: str
    options: Mapping[str, Option] = field(default_factory=dict[str, Option])


@dataclass(frozen=True)
class Stop:
    """When training ends before its last round, and which model is tested.

    `patience` counts rounds without a better weighted validation score (0: never stop early);
    `test` = "best" scores the test cases with the model of the best round.
    """

    patience: int = 0
    validate_every: int = 1
    test: Literal["best", "last"] = "best"


@dataclass(frozen=True)
class SiteSpec:
    """One site of the roster: its name, its tasks, and its scanner where the site is simulated.

    The data of a real site (`data` = "files") stands in its own site file, never in the study.
    `share` is its say in the mean where aggregation.shares = "given"; `joins` is the first round in
    which it takes part, 1 where the study does not say.
    """

    name: str
    tasks: tuple[str, ...]
    data: Literal["files", "simulated"] = "files"
    scanner: Scanner = field(default_factory=Scanner)
    patients: Patients = field(default_factory=lambda: Patients(train=8, validation=2, test=4))
    slices: int = 8
    share: float = 1.0
    joins: int | None = None

    @property
    def first_round(self) -> int:
        """Return the first round in which the site takes part."""
        return 1 if self.joins is None else self.joins


@dataclass(frozen=True)
class Study:
    """All of a study, frozen; `grandrounds.load` makes one that is checked.

    The `holdout_sites` of the roster do not train; the model is tested on them in the end. `parity`
    reproduces the released pFLSynth code's settings, its dead mapper mended.
    """

    name: str
    elements: Elements
    site: tuple[SiteSpec, ...]
    seed: int = 1
    rounds: int = 30
    parity: bool = False
    arm: str = ""
    holdout_sites: tuple[str, ...] = ()
    task: AnyTask = field(default_factory=Synthesis)
    training: Training = field(default_factory=Training)
    method: Choice = field(default_factory=lambda: Choice(DEFAULT_METHOD))
    aggregation: Aggregation = field(default_factory=Aggregation)
    topology: Choice = field(default_factory=lambda: Choice("star"))
    privacy: Privacy = field(default_factory=Privacy)
    exchange: Exchange | None = None
    stop: Stop = field(default_factory=Stop)

    @property
    def roster(self) -> dict[str, tuple[str, ...]]:
        """Return each site's task labels, in roster order."""
        return {site.name: site.tasks for site in self.site}

    @property
    def trainers(self) -> tuple[str, ...]:
        """Return the sites that train, in roster order."""
        return tuple(name for name in self.roster if name not in self.holdout_sites)

    def before(self, round: int) -> "Study":
        """Return the study as it was before anyone knew of the sites that join in this round."""
        return replace(
            self, site=tuple(site for site in self.site if site.first_round < max(round, 2))
        )

    def joined(self, round: int) -> tuple[str, ...]:
        """Return the sites that train and have joined by this round, in roster order."""
        awaited = self.awaited(round)
        return tuple(name for name in self.trainers if name not in awaited)

    def awaited(self, round: int) -> tuple[str, ...]:
        """Return the sites that join after this round."""
        return tuple(site.name for site in self.site if site.first_round > max(round, 1))

    @property
    def names(self) -> frozenset[str]:
        """Return the names that all parties know from the study: sites, tasks and their data."""
        elements, labels = self.elements, [task for site in self.site for task in site.tasks]
        data = [name for label in labels for name in needs(label)]
        masks = [*(elements.labels or ()), *(["age"] if elements.age else [])]
        own = [*elements.contrasts, *elements.variables, *masks]
        return frozenset([*self.roster, *labels, *data, *own])

    @property
    def held_out(self) -> dict[str, tuple[str, ...]]:
        """Return, for each held-out site, those of its tasks that another site trains."""
        roster = self.roster
        trained = {label for name in self.trainers for label in roster[name]}
        return {n: tuple(t for t in roster[n] if t in trained) for n in self.holdout_sites}

    def make_task(self, **new_sites: tuple[str, ...]) -> Task:
        """Make the task for the sites that train; it also serves held-out sites and `new_sites`."""
        trained = {name: self.roster[name] for name in self.trainers}
        return self.task.bind(self.elements, trained, {**self.held_out, **new_sites})

    def machine(self, *, processes: int = 1) -> Machine:
        """Return what the study computes on here. Raises `BadStudy` for an absent device."""
        return self.training.machine(processes=processes, volumes=_has_volumes(self.task))

    @property
    def reads_protocols(self) -> bool:
        """Tell whether the network reads how each volume was scanned."""
        return isinstance(self.task, Synthesis) and self.task.codes == "protocol"

    @property
    def training_seed(self) -> int:
        """Return the seed of first weights and of all that is drawn in training."""
        return self.seed if self.training.seed is None else self.training.seed

    @property
    def title(self) -> str:
        """Return the name of this study as an arm of a comparison."""
        return self.arm or self.method.kind

    def build_method(self) -> Method:
        """Make the method, which averages as the study says what its guards let pass."""
        options: dict[str, Any] = dict(self.method.options)
        given = {site.name: site.share for site in self.site}
        averaging = Averaging(self.aggregation, given)
        joins = {site.name: site.first_round for site in self.site if site.name in self.trainers}
        guards = guards_of(self.privacy, self.exchange or Exchange(), joins)
        return method_class(self.method.kind)(**options, averaging=averaging, guards=guards)

    @property
    def server_rate(self) -> Rate:
        """Return how far the model goes along the sites' mean move: as said, or as preferred.

        A method prefers a rate where sites that start from one model are averaged.
        """
        said, kind = self.aggregation.rate, method_class(self.method.kind)
        if said is not None:
            return said
        averages = self.build_topology().averages and self.aggregation.kind == "mean"
        return kind.server_rate if averages and self.training.first_broadcast else 1.0

    def build_topology(self) -> Topology:
        """Make the topology; the seed of training draws leaders and orders."""
        options: dict[str, Any] = dict(self.topology.options)
        return with_seed(TOPOLOGIES[self.topology.kind](**options), self.training_seed)


def _has_volumes(task: AnyTask) -> bool:
    if isinstance(task, SupervisedTask):
        return task.has_volumes
    return isinstance(task, Segmentation) and task.dims == 3
