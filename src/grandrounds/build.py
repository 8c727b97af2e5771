"""From a study to what runs: task, method, topology, sites, and the engine that reaches them."""

from collections.abc import Callable, Generator, Mapping, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import Generic, Protocol, TypeVar

from torch import nn

from grandrounds.bench import Bench
from grandrounds.checkpoints import State
from grandrounds.engines.crew import Share, crew_of
from grandrounds.engines.quorum import untold
from grandrounds.engines.simulation import Simulation
from grandrounds.engines.workers import Workers, shared_out
from grandrounds.errors import BadStudy, FailureCard
from grandrounds.events import PolicySet, TopologySet, WorkSet
from grandrounds.machine import Machine, machine_for, repeatable
from grandrounds.messages import Reply, Request
from grandrounds.methods.method import Method
from grandrounds.opening import Opened, open_sites, pooled
from grandrounds.policy import described, travelling
from grandrounds.precision import weights_dtype
from grandrounds.seeds import seed_for
from grandrounds.site import Site
from grandrounds.site_file import SiteFile
from grandrounds.split_build import crossing, split_up
from grandrounds.study import Study
from grandrounds.tasks.task import Task
from grandrounds.topologies.topology import Links, Load, Sites, Topology
from grandrounds.weights import Filter, Weights, num_bytes, select
from grandrounds.workload import workload


class Hearing(Protocol):
    """Who hears what comes from the sites."""

    def hear(self, request: Request, reply: Reply) -> None:
        """Hear of a reply."""
        ...

    def miss(self, card: FailureCard) -> None:
        """Hear of a site that a quorum goes on without."""
        ...


class Unheard:
    """Nobody hears a site in a worker's process; what it sends is heard where it arrives."""

    def hear(self, request: Request, reply: Reply) -> None:
        """Leave a reply untold."""

    def miss(self, card: FailureCard) -> None:
        """Go on without no site. Raises `SiteFailed`."""
        untold(card)


Engine = TypeVar("Engine", bound=Sites, covariant=True)


@dataclass(frozen=True)
class Federation(Generic[Engine]):
    """Everything that a run needs, built and checked before anything trains.

    `guests` hold sites that do not train; the model is tested on them in the end.
    """

    method: Method
    topology: Topology
    sites: Engine
    start: State
    policy: PolicySet
    account: TopologySet
    work: WorkSet
    guests: tuple[Site, ...] = ()


def build_federation(
    study: Study, opened: Mapping[str, Opened], folder: Path, machine: Machine, listener: Hearing
) -> Federation[Simulation]:
    """Build what a study trains on, from sites that are open. Raises `BadStudy`."""
    task, method = build_task(study), study.build_method()
    bench = build_bench(study, task, machine)
    buffers = study.training.norm_buffers
    travels = travelling(bench.model, task, method, norm_buffers=buffers)

    @cache
    def first(seed: int) -> Weights:
        return task.build(seed).to(weights_dtype(machine.precision)).state_dict()

    if any(_leaves_out(task.uses(name), bench.model, travels) for name in study.trainers):
        method = replace(method, combine=replace(method.combine, uses=task.uses))
    guests = [each for name, each in opened.items() if name in study.holdout_sites]
    trainers = {name: each for name, each in opened.items() if name not in study.holdout_sites}
    members = [pooled(trainers)] if method.pooled else list(trainers.values())
    make = partial(_site, study, task, method, bench, travels, first, folder, ThreadPoolExecutor(2))
    another_bench = partial(build_bench, study, task, machine)
    topology, hosts = split_up(
        study, study.build_topology(), [make(member) for member in members], another_bench
    )
    sends_first = study.training.first_broadcast and not topology.model_at_sites
    policy = described(
        bench.model,
        task,
        travels,
        norm_buffers=buffers,
        validate_every=study.stop.validate_every,
    )
    sites = Simulation(hosts, listener.hear, listener.miss)
    check_links(study, topology, sites)
    start = State(select(first(_first_seed(study, "")), travels)) if sends_first else State({})
    account = accounted(study, topology, method, bench.model, travels, len(members))
    work = workload(study, task)
    return Federation(
        method, topology, sites, start, policy, account, work, tuple(make(each) for each in guests)
    )


def _leaves_out(uses: Filter, model: nn.Module, travels: Filter) -> bool:
    """Tell whether a site has no part in some tensor that travels."""
    return any(travels(name) and not uses(name) for name in model.state_dict())


def num_processes(study: Study, workers: int) -> int:
    """Say how many of the workers there is a site for; pooled data is one site's."""
    return 1 if study.build_method().pooled else min(workers, len(study.trainers))


@contextmanager
def spread_out(
    federation: Federation[Simulation],
    study: Study,
    files: Sequence[SiteFile],
    folder: Path,
    listener: Hearing,
    *,
    processes: int,
) -> Generator[Federation[Sites], None, None]:
    """Let several processes host a federation's sites; one is this process."""
    if processes == 1:
        yield federation
        return
    simulated = federation.sites
    examples = {s.name: len(s.task.training_examples(s.cohorts)) for s in simulated.sites}
    host = partial(hosted, study, files, folder, processes)
    with crew_of(shared_out(examples, processes), host) as crew:
        sites = Workers(simulated.names, crew, listener.hear, listener.miss)
        yield replace(federation, sites=sites)


@contextmanager
def hosted(
    study: Study, files: Sequence[SiteFile], folder: Path, processes: int, share: Share
) -> Generator[Simulation, None, None]:
    """Open a share of the sites in one of several processes. Raises `BadInput`."""
    machine = machine_for(study.training, processes=processes)
    opened = open_sites(study, files, only=share)
    with repeatable(machine):
        yield build_federation(study, opened, folder, machine, Unheard()).sites


def check_links(study: Study, topology: Topology, sites: Sites) -> None:
    """Refuse an engine that cannot reach who must be reached. Raises `BadStudy`."""
    if topology.needs is Links.MESH and sites.links is Links.STAR:
        raise BadStudy(
            f"topology '{study.topology.kind}' needs sites that reach each other; "
            f"here {sites.links.value}"
        )


def accounted(
    study: Study,
    topology: Topology,
    method: Method,
    model: nn.Module,
    travels: Filter,
    sites: int,
) -> TopologySet:
    """Say what a round costs and who sees what."""
    shared = select(model.state_dict(), travels)
    each = [num_bytes(method.combine.of_site(shared, name)) for name in study.trainers]
    one_way = sum(each) // len(each)
    extra = one_way if method.plan.controls else 0
    told = sites * one_way if method.combine.uploads else 0
    crossed = crossing(study, topology, model, travels)
    validations = 1 / study.stop.validate_every
    found = topology.account(Load(sites, one_way, extra, validations, crossed, told))
    return TopologySet(study.topology.kind, found.bytes_per_round, found.wall_clock, found.sees)


def build_task(study: Study) -> Task:
    """Bind the task to the study's elements and roster."""
    return study.bound()


def build_bench(study: Study, task: Task, machine: Machine) -> Bench:
    """Put the model on the device, compiled if the study asks for it."""
    model = task.build(study.seed).to(machine.device, weights_dtype(machine.precision))
    if study.training.compile:
        model.compile()  # pyright: ignore[reportUnknownMemberType]
    return Bench(
        model,
        machine.device,
        machine.precision,
        kind=study.training.optimizer,
        betas=study.training.betas,
        momentum=study.training.momentum,
        rates=task.learning_rates,
    )


def _site(
    study: Study,
    task: Task,
    method: Method,
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
        method=method,
        first_weights=partial(first, _first_seed(study, own)),
        bench=bench,
        folder=folder / "sites" / opened.name,
        ready=opened.ready,
        disk=disk,
        shows_images=opened.shows_images,
        redact=opened.redact,
    )


def _first_seed(study: Study, site: str) -> int:
    """Give the seed of the first weights: one for all where round 0 broadcasts, else one a site."""
    return seed_for(study.seed, "first weights", site)
