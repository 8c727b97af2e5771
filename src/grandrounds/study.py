"""What a consortium agrees on: the study as frozen dataclasses, and the checks across its parts."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Literal, TypeAlias

from grandrounds.data.elements import Elements
from grandrounds.data.simulate import Patients, Scanner
from grandrounds.methods import METHODS
from grandrounds.methods.method import Method
from grandrounds.tasks import AnyTask, Synthesis
from grandrounds.tasks.checks import require as _check
from grandrounds.topologies import TOPOLOGIES
from grandrounds.topologies.topology import Topology
from grandrounds.training import Training

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
class Privacy:
    """What protects an update before it leaves a site; "none" until guards exist."""

    kind: Literal["none"] = "none"


@dataclass(frozen=True)
class SiteSpec:
    """One site of the roster: its name, its tasks, and its scanner where the site is simulated.

    The data of a real site (`data` = "files") stands in its own site file, never in the study.
    """

    name: str
    tasks: tuple[str, ...]
    data: Literal["files", "simulated"] = "files"
    scanner: Scanner = field(default_factory=Scanner)
    patients: Patients = field(default_factory=lambda: Patients(train=8, validation=2, test=4))
    slices: int = 8


@dataclass(frozen=True)
class Study:
    """All of a study.

    `parity` reproduces the released pFLSynth code's settings, its dead mapper mended.
    """

    name: str
    elements: Elements
    site: tuple[SiteSpec, ...]
    seed: int = 1
    rounds: int = 30
    parity: bool = False
    arm: str = ""
    task: AnyTask = field(default_factory=Synthesis)
    training: Training = field(default_factory=Training)
    method: Choice = field(default_factory=lambda: Choice("pflsynth"))
    topology: Choice = field(default_factory=lambda: Choice("star"))
    privacy: Privacy = field(default_factory=Privacy)
    stop: Stop = field(default_factory=Stop)

    @property
    def roster(self) -> dict[str, tuple[str, ...]]:
        """Map each site to its task labels, in roster order."""
        return {site.name: site.tasks for site in self.site}

    @property
    def title(self) -> str:
        """Name the arm of a comparison that this study is."""
        return self.arm or self.method.kind

    def build_method(self) -> Method:
        """Make the method, with the study's local epochs."""
        preset = METHODS[self.method.kind]
        method = preset(**self.method.options)
        return replace(method, plan=replace(method.plan, epochs=self.training.epochs))

    def build_topology(self) -> Topology:
        """Make the topology."""
        return TOPOLOGIES[self.topology.kind](**self.topology.options)


def resolved(study: Study) -> Study:
    """Fill in what depends on other choices, then check everything. Raises `BadStudy`."""
    if isinstance(study.task, Synthesis) and study.task.generator == "auto":  # pyright: ignore[reportUnnecessaryIsInstance]
        personalised = study.method.kind == "pflsynth"
        generator = "personalised" if personalised else "plain"
        study = replace(study, task=replace(study.task, generator=generator))
    for check in CHECKS:
        check(study)
    return study


def check_counts(study: Study) -> None:
    """Refuse counts and rates that make no sense."""
    least = {
        "rounds": (study.rounds, 1),
        "training.batch_size": (study.training.batch_size, 1),
        "training.epochs": (study.training.epochs, 1),
        "training.threads": (study.training.threads, 0),
        "stop.patience": (study.stop.patience, 0),
        "stop.validate_every": (study.stop.validate_every, 1),
    }
    for path, (value, low) in least.items():
        _check(value >= low, f"{path} is {value}; it must be {low} or more")
    _check(study.training.learning_rate > 0, "training.learning_rate must be above 0")


def check_elements(study: Study) -> None:
    """Refuse common data elements that no network or split can use."""
    elements = study.elements
    _check(
        len(set(elements.contrasts)) == len(elements.contrasts),
        f"elements.contrasts names a contrast twice: {', '.join(elements.contrasts)}",
    )
    _check(min(elements.spacing) > 0, "elements.spacing must be above 0 (mm)")
    parts = elements.split
    total = parts.train + parts.validation + parts.test
    _check(
        abs(total - 1) < 1e-6 and min(parts.train, parts.test) > 0 and parts.validation >= 0,
        f"elements.split adds up to {total:g}; "
        "train and test must be above 0 and all three add up to 1",
    )


def check_sites(study: Study) -> None:
    """Refuse a roster with doubled or unusable names, and tasks that the elements do not hold."""
    _check(bool(study.site), "the study names no [[site]]; it needs one or more")
    names = [site.name for site in study.site]
    for name in names:
        _check(names.count(name) == 1, f"two sites are named '{name}'; site names must differ")
        _check(
            re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]{0,62}", name) is not None,
            f"site name '{name}': use letters, digits, '-' and '_' (it names a folder)",
        )
    for site in study.site:
        _check(
            bool(site.tasks), f"site '{site.name}' has no tasks; for example tasks = [\"T1w->T2w\"]"
        )


def check_task(study: Study) -> None:
    """Refuse what the task itself refuses."""
    study.task.check(study.elements, study.roster)


def check_simulated(study: Study) -> None:
    """Refuse simulated sites whose scanner or patients cannot serve the study."""
    for site in study.site:
        if site.data != "simulated":
            continue
        for contrast in study.elements.contrasts:
            have = ", ".join(site.scanner.protocol) or "nothing"
            _check(
                contrast in site.scanner.protocol,
                f"site '{site.name}': its scanner.protocol has no sequence "
                f"for contrast '{contrast}' (it has {have})",
            )
        _check(
            site.patients.train >= 1 and site.patients.test >= 1 and site.patients.validation >= 0,
            f"site '{site.name}': patients must give one or more to train and to test",
        )
        _check(
            site.slices >= 1, f"site '{site.name}': slices is {site.slices}; it must be 1 or more"
        )


def check_method(study: Study) -> None:
    """Refuse a method that the task's network cannot follow, and policies that would do nothing."""
    if study.method.kind == "pflsynth":
        _check(
            isinstance(study.task, Synthesis) and study.task.generator == "personalised",  # pyright: ignore[reportUnnecessaryIsInstance]
            'method "pflsynth" needs task.generator = "personalised"; without personalisation '
            "blocks and mapper its split has nothing to personalise",
        )
    _check(
        study.training.norm_buffers == "follow" or study.task.has_statistics,
        f'training.norm_buffers = "{study.training.norm_buffers}" would do nothing: '
        'task.norm is "instance", which keeps no running statistics. '
        'Remove it, or set task.norm = "batch".',
    )


CHECKS: tuple[Callable[[Study], None], ...] = (
    check_counts,
    check_elements,
    check_sites,
    check_task,
    check_simulated,
    check_method,
)


def notes(study: Study) -> tuple[str, ...]:
    """Say what is allowed but may surprise."""
    found: list[str] = []
    if study.method.kind == "fedbn" and not study.task.has_statistics:
        found.append("fedbn changes nothing here: the network has no batch norm, so this is FedAvg")
    if study.task.has_statistics and study.training.batch_size == 1 and not study.parity:
        found.append("batch norm with training.batch_size = 1 acts as instance norm while training")
    return tuple(found)
