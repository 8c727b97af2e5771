"""From a study to a network in two parts: the cut, the server's part, and what crosses."""

from collections.abc import Callable
from dataclasses import replace

from torch import nn

from grandrounds.bench import Bench
from grandrounds.cut import Cut, case_bytes, cut_at
from grandrounds.precision import choose_device, choose_precision, weights_dtype
from grandrounds.site import Site
from grandrounds.split_server import Server
from grandrounds.split_site import SitePart
from grandrounds.study import SiteSpec, Study
from grandrounds.tasks import Tabular
from grandrounds.tasks.task import Task
from grandrounds.topologies.split import Split
from grandrounds.topologies.topology import Crossing, Topology
from grandrounds.training import Training
from grandrounds.weights import Filter, Weights, num_bytes, select

STEP = 4  # bytes in which Adam counts a parameter's steps


def with_server(
    study: Study, task: Task, travels: Filter, model: nn.Module, build: Callable[[], Bench]
) -> Topology:
    """Build the topology; one that cuts the network has the server's part, whose bench `build`s."""
    topology = study.build_topology()
    if not isinstance(topology, Split):
        return topology
    cut = _cut(topology, task, model)
    server = Server(task, cut, travels, study.training, study.rounds, study.seed, build)
    return replace(topology, server=server)


def in_parts(topology: Topology, site: Site) -> Site:
    """Give a site its part of a network that the topology cuts; else the site as it is."""
    if not isinstance(topology, Split):
        return site
    cut = _cut(topology, site.task, site.bench.model)
    part = SitePart(cut, site.bench, site.task)
    return replace(site, travels=cut.at_site(site.travels), part=part)


def _cut(topology: Split, task: Task, model: nn.Module) -> Cut:
    stages = task.stages(model)
    return cut_at(stages, cut=topology.cut, back=topology.back, labels=topology.labels)


def crossing(
    study: Study, topology: Topology, model: nn.Module, travels: Filter
) -> Crossing | None:
    """Size up what crosses the cut, if there is one: training in the study's precision."""
    if not isinstance(topology, Split):
        return None
    training, size = study.training, study.elements.size
    task = study.bound()
    cut = _cut(topology, task, model)
    precision = choose_precision(training.precision, choose_device(training.device))
    trained = case_bytes(task, cut, size, precision)
    scored = case_bytes(task, cut, size, weights_dtype(precision))
    part = select(model.state_dict(), cut.at_site(travels))
    parameters = {name for name, _ in model.named_parameters()}
    cases, validated = _cases(study)
    return Crossing(
        up=trained.up,
        down=trained.down,
        labels=trained.labels,
        scored=sum(scored.up.values()) + scored.down,
        batch_size=training.batch_size,
        part=num_bytes(part),
        moments=_moments(training, {n: t for n, t in part.items() if n in parameters}),
        cases=cases,
        validated=validated,
    )


def _cases(study: Study) -> tuple[int, int]:
    """Count the cases that a round trains on and that it validates, if they are known before."""
    if any(site.data != "simulated" for site in study.site):
        return 0, 0
    sites = [site for site in study.site if site.name in study.trainers]
    trained = sum(_counted(study, site, site.patients.train) for site in sites)
    scored = [_counted(study, s, s.patients.validation) * len(s.tasks) for s in sites]
    return study.training.epochs * trained, sum(scored)


def _counted(study: Study, site: SiteSpec, patients: int) -> int:
    """Count cases: rows of a table, slices of everything else."""
    return patients if isinstance(study.task, Tabular) else patients * site.slices


def _moments(training: Training, parameters: Weights) -> int:
    """Count what the optimiser remembers of these parameters, in bytes."""
    if training.optimizer == "adam":
        return 2 * num_bytes(parameters) + STEP * len(parameters)
    return num_bytes(parameters) if training.momentum else 0
