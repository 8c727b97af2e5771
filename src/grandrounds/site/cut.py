"""A network cut for split learning: whose its stages are, and what crosses the cut."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from grandrounds.algorithms.split import Split
from grandrounds.core.device import autocast, weights_dtype
from grandrounds.core.errors import BadStudy
from grandrounds.core.weights import Filter, Weights, num_bytes, to_cpu, without_prefix
from grandrounds.tasks.task import Batch, Task

CUT, LABEL = "cut/", "label/"  # before the names of what crosses the cut, and of labels that go up
WHOLE = ""  # the part of a network that is all of it
LabelsAt = Literal["site", "server"]


@dataclass(frozen=True)
class Cut:
    """The stages in order: the site's `front`, the server's `middle`, the site's `end` if any.

    `at_server` selects the tensors of the server's stages, `staged` those of any stage; what is
    outside all stages, such as a critic, is the site's.
    """

    head: tuple[str, ...]
    body: tuple[str, ...]
    tail: tuple[str, ...]
    labels: LabelsAt
    at_server: Filter
    staged: Filter

    def at_site(self, keep: Filter) -> Filter:
        """Narrow a filter to what is not the server's."""
        return lambda name: keep(name) and not self.at_server(name)


def cut_at(stages: Mapping[str, Filter], *, cut: str, back: str, labels: LabelsAt) -> Cut:
    """Cut before the stage `cut`, and again before `back` where that is given.

    Raises `BadStudy` for a stage that is not there, or that leaves one of the sides without any.
    """
    names = tuple(stages)
    first = _place("cut", cut, names, after=0)
    last = _place("back", back, names, after=first) if back else len(names)
    middle = names[first:last]
    return Cut(
        head=names[:first],
        body=middle,
        tail=names[last:],
        labels=labels,
        at_server=_any([stages[name] for name in middle]),
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
    """Give what a batch holds beside what enters the network."""
    inputs = task.inputs(batch)
    return {name: tensor for name, tensor in batch.items() if name not in inputs}


def leaves_from(tensors: Weights, device: torch.device) -> Weights:
    """Begin a graph at what came across the cut."""
    return {
        name: tensor.detach().to(device).requires_grad_(tensor.is_floating_point())
        for name, tensor in without_prefix(CUT, tensors).items()
    }


def backpropagate(made: Weights, came: Weights) -> None:
    """Backpropagate from what was made, by the gradients that came across the cut.

    Each is laid out as what it belongs to: another layout would be another order of sums.
    """
    found = {name: g for name, g in without_prefix(CUT, came).items() if made[name].requires_grad}
    laid_out = [torch.empty_like(made[name]).copy_(g) for name, g in found.items()]
    torch.autograd.backward([made[name] for name in found], laid_out)


def leaf_gradients(begun: Weights) -> Weights:
    """Give the gradients of where a graph began, as far as it reached."""
    return to_cpu({n: t.grad for n, t in begun.items() if t.grad is not None})


@dataclass(frozen=True)
class CaseBytes:
    """What one case sends across the cut, in bytes: `up` by tensor, `down`, and its labels."""

    up: Mapping[str, int]
    down: int
    labels: int
    bare: tuple[str, ...]  # the inputs among what goes up


def case_bytes(task: Task, cut: Cut, size: tuple[int, int], precision: torch.dtype) -> CaseBytes:
    """Find what one case sends across the cut, on tensors that have shapes and no content."""
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
