"""From a study to what runs: task, method, topology, sites, and the engine that reaches them."""

from collections.abc import Callable, Mapping
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path

from grandrounds.bench import Bench
from grandrounds.checkpoints import State
from grandrounds.engines.simulation import OnReply, Simulation
from grandrounds.events import PolicySet
from grandrounds.machine import Machine
from grandrounds.methods.method import Method
from grandrounds.opening import Opened, pooled
from grandrounds.policy import described, travelling
from grandrounds.seeds import seed_for
from grandrounds.site import Site
from grandrounds.study import Study
from grandrounds.tasks.task import Task
from grandrounds.topologies.topology import Topology
from grandrounds.weights import Filter, Weights, select


@dataclass(frozen=True)
class Federation:
    """Everything that a run needs, built and checked before anything trains."""

    method: Method
    topology: Topology
    sites: Simulation
    start: State
    policy: PolicySet


def build_federation(
    study: Study, opened: Mapping[str, Opened], folder: Path, machine: Machine, on_reply: OnReply
) -> Federation:
    """Build what a study trains on, from sites that are open. Raises `BadStudy`."""
    task, method = build_task(study), study.build_method()
    bench = build_bench(study, task, machine)
    buffers = study.training.norm_buffers
    travels = travelling(bench.model, task, method, norm_buffers=buffers)

    @cache
    def first(seed: int) -> Weights:
        return task.build(seed).state_dict()

    members = [pooled(opened)] if method.pooled else list(opened.values())
    make = partial(_site, study, task, bench, travels, first, folder, ThreadPoolExecutor(2))
    start = State(select(first(_first_seed(study, "")), travels))
    return Federation(
        method=method,
        topology=study.build_topology(),
        sites=Simulation(tuple(make(member) for member in members), on_reply),
        start=start if study.training.first_broadcast else State({}),
        policy=described(
            bench.model,
            task,
            travels,
            norm_buffers=buffers,
            validate_every=study.stop.validate_every,
        ),
    )


def build_task(study: Study) -> Task:
    """Bind the task to the study's elements and roster."""
    return study.task.bind(study.elements, study.roster)


def build_bench(study: Study, task: Task, machine: Machine) -> Bench:
    """Put the model on the device, compiled if the study asks for it."""
    model = task.build(study.seed).to(machine.device)
    if study.training.compile:
        model.compile()  # pyright: ignore[reportUnknownMemberType]
    return Bench(
        model,
        machine.device,
        machine.precision,
        betas=study.training.betas,
        rates=task.learning_rates,
    )


def _site(
    study: Study,
    task: Task,
    bench: Bench,
    travels: Filter,
    first: Callable[[int], Weights],
    folder: Path,
    disk: Executor,
    opened: Opened,
) -> Site:
    own = "" if study.training.first_broadcast else opened.name
    return Site(
        name=opened.name,
        task=task,
        cohorts=opened.cohorts,
        training=study.training,
        rounds=study.rounds,
        seed=study.seed,
        travels=travels,
        first_weights=partial(first, _first_seed(study, own)),
        bench=bench,
        folder=folder / "sites" / opened.name,
        ready=opened.ready,
        disk=disk,
        shows_images=opened.shows_images,
    )


def _first_seed(study: Study, site: str) -> int:
    """Give the seed of the first weights: one for all where round 0 broadcasts, else one a site."""
    return seed_for(study.seed, "first weights", site)
