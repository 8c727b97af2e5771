"""Split learning divides the stages of a network between site and server at a cut."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from grandrounds.algorithms.policy import CUT
from grandrounds.algorithms.split import Split
from grandrounds.core.device import autocast, weights_dtype
from grandrounds.core.errors import BadStudy
from grandrounds.core.weights import Filter, Weights, num_bytes, to_cpu, without_prefix
from grandrounds.tasks.task import Batch, Task

WHOLE = ""  # the part of a network that is all of it
LabelsAt = Literal["site", "server"]


@dataclass(frozen=True)
class Cut:
    """The stages in order: the site's `head`, the server's `body`, the site's `tail` if any.

    `at_server` selects the tensors of the server's stages, `staged` those of any stage; tensors
    outside all stages, such as a critic's, belong to the site.
    """

    head: tuple[str, ...]
    body: tuple[str, ...]
    tail: tuple[str, ...]
    labels: LabelsAt
    at_server: Filter
    staged: Filter

    def at_site(self, keep: Filter) -> Filter:
        """Return the filter without the server's tensors."""
        return lambda name: keep(name) and not self.at_server(name)


def cut_at(stages: Mapping[str, Filter], *, cut: str, back: str, labels: LabelsAt) -> Cut:
    """Cut a network before the stage `cut`, and again before `back` where that is given.

    Raises `BadStudy` for an unknown stage, or one that leaves a side without any stage.
    """
    names = tuple(stages)
    first = _place("cut", cut, names, after=0)
    last = _place("back", back, names, after=first) if back else len(names)
    body = names[first:last]
    return Cut(
        head=names[:first],
        body=body,
        tail=names[last:],
        labels=labels,
        at_server=_any([stages[name] for name in body]),
        staged=_any(list(stages.values())),
    )


def _place(option: str, name: str, names: tuple[str, ...], *, after: int) -> int:
    possible = names[after + 1 :]
    if name in possible:
        return names.index(name)
    what = {
        "cut": "it names the first stage that is the server's",
        "back": "it names the first stage after the cut that is the site's again",
    }
    raise BadStudy(
        f'topology.{option} is "{name}"; {what[option]}: {", ".join(possible) or "none is left"}'
    )


def _any(filters: Sequence[Filter]) -> Filter:
    return lambda name: any(keep(name) for keep in filters)


def labels_of(task: Task, batch: Batch) -> Weights:
    """Return the tensors of a batch that are not inputs of the network."""
    inputs = task.inputs(batch)
    return {name: tensor for name, tensor in batch.items() if name not in inputs}


def leaves_from(tensors: Weights, device: torch.device) -> Weights:
    """Return the tensors received across the cut as leaves of a new graph."""
    return {
        name: tensor.detach().to(device).requires_grad_(tensor.is_floating_point())
        for name, tensor in without_prefix(CUT, tensors).items()
    }


def backpropagate(outputs: Weights, received: Weights) -> None:
    """Backpropagate from these outputs the gradients received across the cut.

    Each gradient gets its output's memory layout: another layout would be another order of sums.
    """
    gradients = {n: g for n, g in without_prefix(CUT, received).items() if outputs[n].requires_grad}
    laid_out = [torch.empty_like(outputs[n]).copy_(g) for n, g in gradients.items()]
    torch.autograd.backward([outputs[name] for name in gradients], laid_out)


def leaf_gradients(leaves: Weights) -> Weights:
    """Return the gradients of a graph's leaves that have any."""
    return to_cpu({n: t.grad for n, t in leaves.items() if t.grad is not None})


@dataclass(frozen=True)
class CaseBytes:
    """What one case sends across the cut, in bytes: `up` by tensor, `down`, and its labels."""

    up: Mapping[str, int]
    down: int
    labels: int
    bare: tuple[str, ...]  # the inputs among what goes up


def case_bytes(task: Task, cut: Cut, size: tuple[int, int], precision: torch.dtype) -> CaseBytes:
    """Return what one case sends across the cut, found on tensors with shapes and no content."""
    scale = weights_dtype(precision).itemsize // torch.float32.itemsize
    with FakeTensorMode(), autocast(torch.device("cpu"), precision):
        model, batch = task.build(0), task.blank(size)
        up = task.run(model, cut.head, task.inputs(batch))
        down = task.run(model, cut.body, up)
        return CaseBytes(
            up={name: scale * tensor.nbytes for name, tensor in up.items()},
            down=scale * num_bytes(down),
            labels=scale * num_bytes(labels_of(task, batch)),
            bare=tuple(name for name in up if name in task.inputs(batch)),
        )


def cut_model(topology: Split, task: Task, model: nn.Module) -> Cut:
    """Cut a model as the topology says. Raises `BadStudy` for a stage that is not there."""
    stages = task.stages(model)
    return cut_at(stages, cut=topology.cut, back=topology.back, labels=topology.labels)
