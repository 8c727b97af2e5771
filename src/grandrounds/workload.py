"""How much a training step computes, counted without computing it."""

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from grandrounds.events import WorkSet
from grandrounds.study import Study
from grandrounds.tasks.task import Task

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
