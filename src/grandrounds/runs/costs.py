"""What a study will cost, before anything trains: memory, bytes, tensors that travel."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from grandrounds.algorithms import TOPOLOGIES
from grandrounds.algorithms.methods import Method
from grandrounds.algorithms.sharing import described, travelling
from grandrounds.algorithms.split import Split
from grandrounds.algorithms.topology import Crossing, Load, Topology
from grandrounds.core.device import choose_device, choose_precision, physical_memory, weights_dtype
from grandrounds.core.errors import BadStudy
from grandrounds.core.events import PolicySet, TopologySet, WorkSet
from grandrounds.core.weights import Filter, Weights, num_bytes, select
from grandrounds.site.cut import case_bytes, cut_model
from grandrounds.site.training import Training
from grandrounds.study.checks import resolved
from grandrounds.study.study import Choice, SiteSpec, Study
from grandrounds.tasks import Tabular
from grandrounds.tasks.task import Task

STEP = 4  # bytes in which Adam counts a parameter's steps


def crossing(
    study: Study, topology: Topology, model: nn.Module, travels: Filter
) -> Crossing | None:
    """Size up what crosses the cut, if there is one: training in the study's precision."""
    if not isinstance(topology, Split):
        return None
    training, size = study.training, study.elements.size
    task = study.bound()
    cut = cut_model(topology, task, model)
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


META = torch.device("meta")


def workload(study: Study, task: Task) -> WorkSet:
    """Count the parameters, and the operations of a step on a whole batch."""
    with META:
        model = task.build(study.seed).train()
    with FlopCounterMode(display=False) as counter:
        for _, loss in task.losses(model, _batch(study, task)):
            loss.backward()  # pyright: ignore[reportUnknownMemberType]
    return WorkSet(sum(p.numel() for p in model.parameters()), counter.get_total_flops())


def _batch(study: Study, task: Task) -> dict[str, Tensor]:
    size, cases = study.elements.size, study.training.batch_size
    blank = task.blank((size[0], size[1]))
    return {name: _tiled(tensor, cases) for name, tensor in blank.items()}


def _tiled(tensor: Tensor, cases: int) -> Tensor:
    """Repeat a case without its content; whole numbers keep theirs, since losses read them."""
    batch = tensor.expand(cases, *tensor.shape[1:])
    return batch.to(META) if batch.is_floating_point() else batch


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


PROBE = 64  # pixels
PROCESS = 720 * 2**20  # the libraries and their buffers; measured 0.65 GiB for the smallest study


@dataclass(frozen=True)
class Estimate:
    """The memory of one process that simulates all sites, in bytes, by what takes it.

    `weights`: the model, its gradients, Adam's moments, the state of the coordinator and of one
    site; `activations`: what autograd keeps for one batch, in fp32; an upper bound.
    """

    policy: PolicySet
    topology: TopologySet
    rounds: int
    weights: int
    activations: int

    @property
    def memory(self) -> int:
        """Add up the memory."""
        return PROCESS + self.weights + self.activations

    @property
    def bytes_per_round(self) -> int:
        """Count what travels in a round over all links."""
        return self.topology.bytes_per_round

    @property
    def bytes_per_run(self) -> int:
        """Count what travels in the whole run."""
        return self.bytes_per_round * self.rounds


def estimate(study: Study) -> Estimate:
    """Estimate a study's cost by building its model, and one batch without data."""
    task, method = study.bound(), study.build_method()
    model = task.build(study.seed)
    buffers, every = study.training.norm_buffers, study.stop.validate_every
    travels = travelling(model, task.groups(model), method, norm_buffers=buffers)
    return Estimate(
        policy=described(
            model, task.groups(model), travels, norm_buffers=buffers, validate_every=every
        ),
        topology=_accounted(study, model, travels),
        rounds=study.rounds,
        weights=8 * num_bytes(model.state_dict()),
        activations=_activations(model, task, study),
    )


def _accounted(study: Study, model: nn.Module, travels: Filter) -> TopologySet:
    method = study.build_method()
    sites = 1 if method.pooled else len(study.trainers)
    return accounted(study, study.build_topology(), method, model, travels, sites)


def topologies(study: Study) -> Mapping[str, TopologySet | str]:
    """Say of each topology what a round costs and shows there, or why the study cannot choose it.

    The study's own is counted with its options, the others with their defaults.
    """
    task, method = study.bound(), study.build_method()
    model = task.build(study.seed)
    travels = travelling(
        model, task.groups(model), method, norm_buffers=study.training.norm_buffers
    )
    choices = {kind: Choice(kind) for kind in TOPOLOGIES} | {study.topology.kind: study.topology}
    found: dict[str, TopologySet | str] = {}
    for kind, choice in choices.items():
        try:
            chosen = resolved(replace(study, topology=choice))
        except BadStudy as refusal:
            found[kind] = str(refusal)
        else:
            found[kind] = _accounted(chosen, model, travels)
    return found


def check_memory(study: Study, *, processes: int = 1) -> None:
    """Refuse a study that this machine's memory cannot hold. Raises `BadStudy`."""
    need, have = processes * estimate(study).memory, physical_memory()
    if need > have:
        raise BadStudy(
            f"elements.size = {list(study.elements.size)} with "
            f"training.batch_size = {study.training.batch_size} needs about "
            f"{need / 2**30:.0f} GiB{_in(processes)}, but this machine has {have / 2**30:.0f} GiB; "
            "choose a smaller size, network or batch"
        )


def _in(processes: int) -> str:
    return f" in {processes} processes" if processes > 1 else ""


def _activations(model: nn.Module, task: Task, study: Study) -> int:
    """Add up what autograd keeps for one small case, scaled to the study's pixels and batch."""
    own = {parameter.data_ptr() for parameter in model.parameters()}
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        if tensor.data_ptr() not in own:
            kept[tensor.data_ptr()] = max(tensor.nbytes, kept.get(tensor.data_ptr(), 0))
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        losses = [loss for _, loss in task.losses(model.train(), task.blank((PROBE, PROBE)))]
    assert losses, (
        "the graphs must live until all is counted, or freed memory would be counted twice"
    )
    height, width = study.elements.size
    return sum(kept.values()) * study.training.batch_size * height * width // PROBE**2
