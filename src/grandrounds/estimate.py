"""What a study will cost, before anything trains: memory, bytes, tensors that travel."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from grandrounds.blueprint import accounted, build_task
from grandrounds.errors import BadStudy
from grandrounds.events import PolicySet, TopologySet
from grandrounds.machine import physical_memory
from grandrounds.policy import described, travelling
from grandrounds.study import Choice, Study
from grandrounds.study_checks import resolved
from grandrounds.tasks.task import Task
from grandrounds.topologies import TOPOLOGIES
from grandrounds.weights import Filter, num_bytes

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
    task, method = build_task(study), study.build_method()
    model = task.build(study.seed)
    buffers, every = study.training.norm_buffers, study.stop.validate_every
    travels = travelling(model, task, method, norm_buffers=buffers)
    return Estimate(
        policy=described(model, task, travels, norm_buffers=buffers, validate_every=every),
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
    task, method = build_task(study), study.build_method()
    model = task.build(study.seed)
    travels = travelling(model, task, method, norm_buffers=study.training.norm_buffers)
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
