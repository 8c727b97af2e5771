"""From a study to what runs: task, method, topology, sites, and the engine that reaches them."""

from collections.abc import Generator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Generic, Protocol, TypeVar

from grandrounds.blueprint import Blueprint, draw_up
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
from grandrounds.site import Site
from grandrounds.site_file import SiteFile
from grandrounds.split_build import in_parts
from grandrounds.study import Study
from grandrounds.topologies.topology import Links, Sites, Topology


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
