"""What every process of a run builds of the study alone: no data, no engine."""

from collections.abc import Callable
from concurrent.futures import Executor
from dataclasses import dataclass, replace
from functools import cache, cached_property, partial
from pathlib import Path

from torch import nn

from grandrounds.bench import Bench
from grandrounds.checkpoints import State
from grandrounds.events import PolicySet, TopologySet, WorkSet
from grandrounds.machine import Machine
from grandrounds.methods.method import Method
from grandrounds.opening import Opened
from grandrounds.policy import described, travelling
from grandrounds.precision import weights_dtype
from grandrounds.seeds import seed_for
from grandrounds.site import Site
from grandrounds.split_build import crossing, with_server
from grandrounds.study import Study
from grandrounds.tasks.task import Task
from grandrounds.topologies.topology import Load, Topology
from grandrounds.weights import Filter, Weights, num_bytes, select
from grandrounds.workload import workload


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
            self.task,
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
    task, method = build_task(study), study.build_method()
    bench = build_bench(study, task, machine)
    travels = travelling(bench.model, task, method, norm_buffers=study.training.norm_buffers)
    if any(_leaves_out(task.uses(name), bench.model, travels) for name in study.trainers):
        method = replace(method, combine=replace(method.combine, uses=task.uses))
    another_bench = partial(build_bench, study, task, machine)
    topology = with_server(study, task, travels, bench.model, another_bench)
    return Blueprint(study, machine, task, method, topology, bench, travels)


def _leaves_out(uses: Filter, model: nn.Module, travels: Filter) -> bool:
    """Tell whether a site has no part in some tensor that travels."""
    return any(travels(name) and not uses(name) for name in model.state_dict())


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
    reveals = method.combine.uploads or method.combine.best
    found = topology.account(Load(sites, one_way, extra, validations, crossed, told, reveals))
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


def _first_seed(study: Study, site: str) -> int:
    """Give the seed of the first weights: one for all where round 0 broadcasts, else one a site."""
    return seed_for(study.seed, "first weights", site)
