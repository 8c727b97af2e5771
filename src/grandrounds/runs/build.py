"""A run's sites, server and model are built here from its plan, in one process or several."""

from collections.abc import Callable, Generator, Mapping, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from functools import cache, cached_property, partial
from pathlib import Path
from pickle import Pickler
from typing import Generic, TypeVar

from grandrounds.algorithms.method import Method
from grandrounds.algorithms.split import Split
from grandrounds.algorithms.topology import Links, Sites, Topology
from grandrounds.core.device import (
    Machine,
    deterministic,
    take_share,
    weights_dtype,
)
from grandrounds.core.errors import BadSite, BadStudy
from grandrounds.core.events import PolicySet, TopologySet, WorkSet
from grandrounds.core.extensions import only_here, word_of
from grandrounds.core.run_folder import RunFolder
from grandrounds.core.seeds import seed_for
from grandrounds.core.state import State
from grandrounds.core.weights import Weights, select
from grandrounds.data.protocol import protocols_to_text, usual_protocols
from grandrounds.engines.in_process import InProcessEngine
from grandrounds.engines.process_pool import (
    Assignment,
    ProcessPoolEngine,
    WorkerSites,
    assign_sites,
    start_workers,
)
from grandrounds.privacy.secure_sum.roster import KeySigner
from grandrounds.runs.costs import RunPlan, plan_run, round_cost, workload
from grandrounds.runs.ledgers import ledgers_here
from grandrounds.runs.listeners import ReplyListener, SilentListener
from grandrounds.runs.site_data import SiteData, open_sites, pool_sites
from grandrounds.runs.site_privacy import site_privacy
from grandrounds.runs.split_server import SplitServer
from grandrounds.site.cut import cut_model
from grandrounds.site.masking import SiteMasking, signer_of_simulation
from grandrounds.site.site import Site
from grandrounds.site.training import Trainer
from grandrounds.study.file import fingerprint
from grandrounds.study.site_file import SiteDataset, SiteSource
from grandrounds.study.study import Study

Engine = TypeVar("Engine", bound=Sites, covariant=True)


@dataclass(frozen=True)
class Blueprint:
    """A run's plan on one machine, as the server and every site build it.

    `trainer` holds the plan's model; all sites of this process share it. `signer` signs the keys
    with which a site masks its updates; without it the sites sign as simulated ones.
    """

    plan: RunPlan
    machine: Machine
    topology: Topology
    trainer: Trainer
    signer: KeySigner | None = None

    @property
    def start(self) -> State:
        """Return the state before round 1: one first broadcast, unless the sites start apart."""
        broadcasts = self.plan.study.training.first_broadcast
        if not broadcasts or self.topology.model_at_sites:
            return State({})
        return State(select(self.first_weights(""), self.plan.travels))

    @cached_property
    def first_weights(self) -> Callable[[str], Weights]:
        """Return a cached function from a site's name, or "" for all, to first weights."""
        return cache(partial(first_weights, self.plan, self.machine))

    def site(self, site_data: SiteData, folder: Path, disk: Executor) -> Site:
        """Build one site of a run in `folder` from its data, with the whole network."""
        plan, study = self.plan, self.plan.study
        named = "" if study.training.first_broadcast else site_data.name
        return Site(
            name=site_data.name,
            task=plan.task,
            cohorts=site_data.cohorts,
            training=study.training,
            rounds=study.rounds,
            seed=study.training_seed,
            travels=plan.travels,
            method=plan.method,
            moments_travel=self.topology.moments_travel,
            first_weights=partial(self.first_weights, named),
            trainer=self.trainer,
            folder=RunFolder(folder).site(site_data.name).path,
            ready=site_data.ready,
            disk=disk,
            shows_images=site_data.shows_images,
            disclosure=site_data.disclosure,
            protocols=_usual(study, site_data),
            pixel=study.elements.spacing,
            masking=self._masking(site_data.name, RunFolder(folder)),
            privacy=site_privacy(
                study,
                site_data.name,
                folder,
                site_data.budget,
                simulated=site_data.ready.simulated,
            ),
        )

    def _masking(self, site: str, run: RunFolder) -> SiteMasking | None:
        """Return a site's part in secure sums. Raises `BadStudy` without what masks."""
        study = self.plan.study
        if not self.plan.method.guards.masks:
            return None
        hashed = fingerprint(study)
        signer = self.signer or signer_of_simulation(hashed, site)
        return SiteMasking(site, hashed, study.trainers, signer, run.site(site).path)


def _usual(study: Study, site_data: SiteData) -> str:
    """Return how a site, or each of pooled ones, usually scans; empty where no network reads it."""
    if not study.reads_protocols:
        return ""
    return protocols_to_text(
        {c.site: usual_protocols(c.splits["train"]) for c in site_data.cohorts}
    )


def make_blueprint(plan: RunPlan, machine: Machine) -> Blueprint:
    """Build a run's plan on this machine, with the server's part of a network that is cut."""
    trainer = build_trainer(plan, machine)
    topology = with_server_part(plan, partial(_another_trainer, plan, machine))
    return Blueprint(plan, machine, topology, trainer)


def with_server_part(plan: RunPlan, build: Callable[[], Trainer]) -> Topology:
    """Build the topology; one that cuts the network has the server's part, trained by `build()`."""
    study, topology = plan.study, plan.study.build_topology()
    if not isinstance(topology, Split):
        return topology
    cut = cut_model(topology, plan.task, plan.model)
    server = SplitServer(
        plan.task, cut, plan.travels, study.training, study.rounds, study.training_seed, build
    )
    return replace(topology, server=server)


def with_site_part(topology: Topology, site: Site) -> Site:
    """Return a site with its part of a network that the topology cuts; else the site as it is."""
    if not isinstance(topology, Split):
        return site
    cut = cut_model(topology, site.task, site.trainer.model)
    return replace(site, travels=cut.at_site(site.travels), cut=cut)


def build_trainer(plan: RunPlan, machine: Machine) -> Trainer:
    """Make a trainer of the plan's model on the device, compiled if the study asks for it."""
    training = plan.study.training
    model = plan.model.to(machine.device, weights_dtype(machine.precision))
    if training.compile:
        model.compile()  # pyright: ignore[reportUnknownMemberType]
    return Trainer(
        model,
        machine.device,
        machine.precision,
        kind=training.optimizer,
        betas=training.betas,
        momentum=training.momentum,
        rates=plan.task.learning_rates,
    )


def _another_trainer(plan: RunPlan, machine: Machine) -> Trainer:
    return build_trainer(replace(plan, model=plan.task.build(plan.study.training_seed)), machine)


def first_weights(plan: RunPlan, machine: Machine, site: str = "") -> Weights:
    """Make the weights before any training: one set for all sites, or the named site's own.

    Round 0 broadcasts the former, unless the study lets every site start from its own weights.
    """
    model = plan.task.build(seed_for(plan.study.training_seed, "first weights", site))
    return model.to(weights_dtype(machine.precision)).state_dict()


@dataclass(frozen=True)
class Federation(Generic[Engine]):
    """Everything that a run needs, built and checked before anything trains.

    `compared` are the tensors by parameter group in which the sites' updates can be compared.
    `holdouts` are sites that do not train; the model is tested on them in the end.
    """

    method: Method
    topology: Topology
    sites: Engine
    start: State
    policy: PolicySet
    account: TopologySet
    work: WorkSet
    compared: Mapping[str, frozenset[str]]
    holdouts: tuple[Site, ...] = ()


def build_federation(
    plan: RunPlan,
    site_data: Mapping[str, SiteData],
    folder: Path,
    machine: Machine,
    listener: ReplyListener,
) -> Federation[InProcessEngine]:
    """Build a run's federation in this process from opened sites. Raises `BadStudy`."""
    blueprint, holdout = make_blueprint(plan, machine), plan.study.holdout_sites
    trainers = {name: each for name, each in site_data.items() if name not in holdout}
    sites = build_sites(blueprint, trainers, folder, listener, records=True)
    make = partial(blueprint.site, folder=folder, disk=ThreadPoolExecutor(2))
    holdouts = (each for name, each in site_data.items() if name in holdout)
    return make_federation(blueprint, sites, tuple(map(make, holdouts)))


def build_sites(
    blueprint: Blueprint,
    site_data: Mapping[str, SiteData],
    folder: Path,
    listener: ReplyListener,
    *,
    records: bool,
) -> InProcessEngine:
    """Build the sites that train in this process; pooled data are one.

    The engine `records` what leaves them in their ledgers, unless whoever hosts them does.
    """
    pooled = blueprint.plan.method.sharing().pooled
    members = [pool_sites(site_data)] if pooled else list(site_data.values())
    make = partial(blueprint.site, folder=folder, disk=ThreadPoolExecutor(2))
    hosts = tuple(with_site_part(blueprint.topology, make(member)) for member in members)
    names = [host.name for host in hosts] if records else []
    ledgers = ledgers_here(blueprint.plan.study, folder, names)
    return InProcessEngine(hosts, listener.on_reply, listener.on_missing, ledgers)


def make_federation(
    blueprint: Blueprint, sites: Engine, holdouts: tuple[Site, ...] = ()
) -> Federation[Engine]:
    """Join a blueprint and the engine that reaches its sites. Raises `BadStudy`."""
    plan = blueprint.plan
    check_links(plan.study, blueprint.topology, sites)
    return Federation(
        method=plan.method,
        topology=blueprint.topology,
        sites=sites,
        start=blueprint.start,
        policy=plan.policy,
        account=round_cost(plan, plan.study),
        work=workload(plan),
        compared=plan.compared,
        holdouts=holdouts,
    )


def check_links(study: Study, topology: Topology, sites: Sites) -> None:
    """Refuse an engine without the links that the topology needs. Raises `BadStudy`."""
    if topology.needs is Links.MESH and sites.links is Links.STAR:
        raise BadStudy(
            f"topology '{study.topology.kind}' needs sites that reach each other; "
            f"here {sites.links.value}"
        )


def num_processes(study: Study, workers: int) -> int:
    """Return the number of processes: at most one a site, and one for pooled data."""
    return 1 if study.build_method().sharing().pooled else min(workers, len(study.trainers))


def check_processes(study: Study, files: Sequence[SiteSource]) -> None:
    """Refuse several processes where one alone has the task's class or a dataset.

    Raises `BadStudy` or `BadSite`.
    """
    remedy = "move it into a module beside what you run, or run in this process alone"
    if only_here(study.task.kind):
        raise BadStudy(
            f'workers are processes that must import task.kind = "{study.task.kind}", which is '
            f"defined in this one; {remedy}"
        )
    for source in files:
        if not isinstance(source, SiteDataset):
            continue
        word = word_of(type(source.dataset), {})
        if only_here(word):
            raise BadSite(
                f"site '{source.name}': workers are processes that must import \"{word}\", the "
                f"class of its dataset, which is defined in this one; {remedy}"
            )
        try:
            Pickler(_Nowhere()).dump(source.dataset)
        except Exception as error:
            raise BadSite(
                f"site '{source.name}': its dataset cannot be given to workers, which are other "
                f"processes ({type(error).__name__}: {error}); let it open its files when it reads "
                "an item, or run in this process alone"
            ) from error


class _Nowhere:
    """A file that forgets what is written."""

    def write(self, content: bytes, /) -> int:
        return len(content)


@contextmanager
def distribute(
    federation: Federation[InProcessEngine],
    study: Study,
    files: Sequence[SiteSource],
    folder: Path,
    listener: ReplyListener,
    *,
    processes: int,
    devices: tuple[str, ...] = (),
) -> Generator[Federation[Sites], None, None]:
    """Host a federation's sites in several processes; with one, in this process.

    The processes compute on `devices` in turn, or on all accelerators that there are.
    """
    if processes == 1:
        yield federation
        return
    check_processes(study, files)
    simulated = federation.sites
    examples = {s.name: len(s.task.training_examples(s.cohorts)) for s in simulated.sites}
    shares = assign_sites(examples, processes)
    host = partial(
        _on_own_device, shares, devices, partial(host_sites, study, files, folder, processes)
    )
    with start_workers(shares, host) as workers:
        sites = ProcessPoolEngine(simulated.names, workers, listener.on_reply, listener.on_missing)
        yield replace(federation, sites=sites)


def _on_own_device(
    shares: Sequence[Assignment], devices: tuple[str, ...], host: WorkerSites, share: Assignment
) -> AbstractContextManager[InProcessEngine]:
    """Host a share of the sites in a process of its own, on its accelerator of several."""
    take_share(shares.index(share), devices)
    return host(share)


@contextmanager
def host_sites(
    study: Study,
    files: Sequence[SiteSource],
    folder: Path,
    processes: int,
    share: Assignment,
    signer: KeySigner | None = None,
    *,
    records: bool = True,
) -> Generator[InProcessEngine, None, None]:
    """Open the sites assigned to one of several processes, as `build_sites` does.

    `signer` is a real site's.

    Raises `BadInput`.
    """
    machine = study.machine(processes=processes)
    site_data = open_sites(study, files, only=share)
    with deterministic(machine):
        blueprint = replace(make_blueprint(plan_run(study), machine), signer=signer)
        yield build_sites(blueprint, site_data, folder, SilentListener(), records=records)
