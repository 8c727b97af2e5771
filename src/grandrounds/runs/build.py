"""What every process of a run builds of the study alone: no data, no engine."""

from collections.abc import Callable, Generator, Mapping, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache, cached_property, partial
from pathlib import Path
from typing import Generic, TypeVar

from torch import nn

from grandrounds.algorithms.methods import Method
from grandrounds.algorithms.sharing import described, travelling
from grandrounds.algorithms.split import Split
from grandrounds.algorithms.topology import Links, Sites, Topology
from grandrounds.core.device import (
    Machine,
    repeatable,
    weights_dtype,
)
from grandrounds.core.errors import BadStudy
from grandrounds.core.events import PolicySet, TopologySet, WorkSet
from grandrounds.core.seeds import seed_for
from grandrounds.core.state import State
from grandrounds.core.weights import Filter, Weights, select
from grandrounds.engines.in_process import Simulation
from grandrounds.engines.process_pool import Share, Workers, crew_of, shared_out
from grandrounds.runs.costs import accounted, workload
from grandrounds.runs.listeners import Hearing, Unheard
from grandrounds.runs.site_data import Opened, open_sites, pooled
from grandrounds.runs.split_server import Server
from grandrounds.site.cut import cut_model
from grandrounds.site.site import Site
from grandrounds.site.training import Bench
from grandrounds.study.site_file import SiteFile
from grandrounds.study.study import Study
from grandrounds.tasks.task import Task


def with_server(
    study: Study, task: Task, travels: Filter, model: nn.Module, build: Callable[[], Bench]
) -> Topology:
    """Build the topology; one that cuts the network has the server's part, whose bench `build`s."""
    topology = study.build_topology()
    if not isinstance(topology, Split):
        return topology
    cut = cut_model(topology, task, model)
    server = Server(task, cut, travels, study.training, study.rounds, study.seed, build)
    return replace(topology, server=server)


def in_parts(topology: Topology, site: Site) -> Site:
    """Give a site its part of a network that the topology cuts; else the site as it is."""
    if not isinstance(topology, Split):
        return site
    cut = cut_model(topology, site.task, site.bench.model)
    return replace(site, travels=cut.at_site(site.travels), cut=cut)


@dataclass(frozen=True)
class Blueprint:
    """A study's task, method, topology and model, as the server and every site build them.

    `bench` holds the one model of this process, whose sites share it.
    """

    study: Study
    machine: Machine
    task: Task
    method: Method
    topology: Topology
    bench: Bench
    travels: Filter

    @cached_property
    def policy(self) -> PolicySet:
        """Say what is shared, private and reset."""
        return described(
            self.bench.model,
            self.task.groups(self.bench.model),
            self.travels,
            norm_buffers=self.study.training.norm_buffers,
            validate_every=self.study.stop.validate_every,
        )

    @cached_property
    def account(self) -> TopologySet:
        """Say what a round costs and who sees what."""
        members = 1 if self.method.pooled else len(self.study.trainers)
        model, travels = self.bench.model, self.travels
        return accounted(self.study, self.topology, self.method, model, travels, members)

    @cached_property
    def work(self) -> WorkSet:
        """Count what a training step computes."""
        return workload(self.study, self.task)

    @property
    def start(self) -> State:
        """Give the state before round 1: one first broadcast, unless the sites begin apart."""
        sends = self.study.training.first_broadcast and not self.topology.model_at_sites
        first = self.first_weights(_first_seed(self.study, ""))
        return State(select(first, self.travels)) if sends else State({})

    @cached_property
    def first_weights(self) -> Callable[[int], Weights]:
        """Give what makes a model's weights before any training from a seed."""
        dtype = weights_dtype(self.machine.precision)

        @cache
        def make(seed: int) -> Weights:
            return self.task.build(seed).to(dtype).state_dict()

        return make

    def site(self, opened: Opened, folder: Path, disk: Executor) -> Site:
        """Build one site of a run in `folder` from its data, with the whole network."""
        study = self.study
        own = "" if study.training.first_broadcast else opened.name
        return Site(
            name=opened.name,
            task=self.task,
            cohorts=opened.cohorts,
            training=study.training,
            rounds=study.rounds,
            seed=study.seed,
            travels=self.travels,
            method=self.method,
            first_weights=partial(self.first_weights, _first_seed(study, own)),
            bench=self.bench,
            folder=folder / "sites" / opened.name,
            ready=opened.ready,
            disk=disk,
            shows_images=opened.shows_images,
            redact=opened.redact,
        )


def draw_up(study: Study, machine: Machine) -> Blueprint:
    """Draw up what a study trains, and check that its parts fit. Raises `BadStudy`."""
    task, method = study.bound(), study.build_method()
    bench = build_bench(study, task, machine)
    travels = travelling(
        bench.model, task.groups(bench.model), method, norm_buffers=study.training.norm_buffers
    )
    if any(_leaves_out(task.uses(name), bench.model, travels) for name in study.trainers):
        method = replace(method, combine=replace(method.combine, uses=task.uses))
    another_bench = partial(build_bench, study, task, machine)
    topology = with_server(study, task, travels, bench.model, another_bench)
    return Blueprint(study, machine, task, method, topology, bench, travels)


def _leaves_out(uses: Filter, model: nn.Module, travels: Filter) -> bool:
    """Tell whether a site has no part in some tensor that travels."""
    return any(travels(name) and not uses(name) for name in model.state_dict())


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


def _first_seed(study: Study, site: str) -> int:
    """Give the seed of the first weights: one for all where round 0 broadcasts, else one a site."""
    return seed_for(study.seed, "first weights", site)


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
    drawn = draw_up(study, machine)
    guests = [each for name, each in opened.items() if name in study.holdout_sites]
    trainers = {name: each for name, each in opened.items() if name not in study.holdout_sites}
    members = [pooled(trainers)] if drawn.method.pooled else list(trainers.values())
    make = partial(drawn.site, folder=folder, disk=ThreadPoolExecutor(2))
    hosts = tuple(in_parts(drawn.topology, make(member)) for member in members)
    sites = Simulation(hosts, listener.hear, listener.miss)
    return federated(drawn, sites, tuple(make(each) for each in guests))


def federated(drawn: Blueprint, sites: Engine, guests: tuple[Site, ...] = ()) -> Federation[Engine]:
    """Join a blueprint and the engine that reaches its sites. Raises `BadStudy`."""
    check_links(drawn.study, drawn.topology, sites)
    return Federation(
        drawn.method,
        drawn.topology,
        sites,
        drawn.start,
        drawn.policy,
        drawn.account,
        drawn.work,
        guests,
    )


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
    machine = study.training.machine(processes=processes)
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
