"""What split learning refuses, each with one sentence: methods, tasks, ways to train, cuts."""

from collections.abc import Iterator
from itertools import chain
from typing import TypeAlias

from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from grandrounds.cut import Cut, case_bytes, cut_at
from grandrounds.errors import BadStudy
from grandrounds.methods.combine import Aggregation
from grandrounds.methods.method import Method
from grandrounds.policy import UNIONS, travelling
from grandrounds.precision import DTYPES
from grandrounds.study import Study
from grandrounds.tasks import AnyTask, Segmentation, Synthesis
from grandrounds.tasks.networks import CONTRASTS
from grandrounds.tasks.task import Task
from grandrounds.topologies.split import Split
from grandrounds.training import Training
from grandrounds.weights import Filter

Problem: TypeAlias = Iterator[str]


def check_split(study: Study) -> None:
    """Refuse what a network in two parts cannot follow. Raises `BadStudy`."""
    split = study.build_topology()
    if isinstance(split, Split):
        found = (split_problems(study, split), task_problems(study.task, split))
        for sentence in chain(*found, cut_problems(study, split)):
            raise BadStudy(sentence)


def split_problems(study: Study, split: Split) -> Problem:
    """Find a method, or a way to train, that a network in two parts cannot follow."""
    aggregation = study.aggregation
    for reason in _method_reasons(study.build_method()):
        yield f'method "{study.method.kind}" makes no sense over topology "split": {reason}'
    if split.variant == "sequential" and aggregation != Aggregation(trim=aggregation.trim):
        yield (
            'aggregation would do nothing over topology "split" with variant = "sequential": '
            'nothing is averaged there; choose "splitfed1" or "splitfed2"'
        )
    for option, reason in _training_reasons(study.training):
        yield f'{option} makes no sense over topology "split": {reason}'


def _method_reasons(method: Method) -> Problem:
    plan, step = method.plan, method.combine.step
    steps = step.kind != "replace" or step.rate != 1
    reasons = {
        "the server's part has no round's start of one site's to be pulled towards": plan.prox,
        "the server's part takes a step with every batch, and cannot wait for the head": (
            plan.private_epochs
        ),
        "a site cannot train a whole model of its own, as it holds only a part of one": (
            plan.personal is not None
        ),
        "its term compares whole encoders, and a site holds only a part of one": plan.contrast,
        "a site cannot validate by itself what it trained, as it holds only a part of it": (
            plan.validates
        ),
        "critics stay beside the images that they judge, and are no part of what is cut": (
            "critic" in method.shared
        ),
        "the server's part is trained in one place, where there is no drift to correct": (
            plan.controls
        ),
        "the server's part steps with every batch, and leaves no mean move to step by": (
            steps and not plan.controls
        ),
    }
    yield from (reason for reason, holds in reasons.items() if holds)


def _training_reasons(training: Training) -> Iterator[tuple[str, str]]:
    if training.fine_tune:
        yield "training.fine_tune", "a site alone lacks the server's part of the network"
    if training.compile:
        yield "training.compile", "stages run one by one, not as one network"
    if not training.first_broadcast:
        yield "training.first_broadcast = false", "both parts start from the same first weights"


def task_problems(options: AnyTask, split: Split) -> Problem:
    """Find a task that cannot be trained or scored through a cut."""
    if split.labels == "server" and split.back:
        yield (
            'topology.labels = "server" and topology.back exclude each other: '
            "with back the output is made at the site, and judged there"
        )
    if isinstance(options, Synthesis):
        if split.labels == "server":
            yield (
                'topology.labels = "server" makes no sense for task "synthesis": its critics '
                "judge source, target and output side by side, and these stay at the site"
            )
        if options.pairing == "unpaired" or options.generator == CONTRASTS:
            yield (
                'task.pairing = "unpaired" and task.generator = "contrasts-unet" make no sense '
                'over topology "split": both need the whole generator in one place'
            )
        if options.dropout_at_evaluation:
            yield (
                'task.dropout_at_evaluation makes no sense over topology "split": '
                "the server's part predicts without dropout"
            )
    if isinstance(options, Segmentation) and options.dims == 3:
        yield (
            'task.dims = 3 makes no sense over topology "split": patches slide over a volume '
            "within one site, not through a cut; choose task.dims = 2"
        )


def cut_problems(study: Study, split: Split) -> Problem:
    """Find what is wrong with where the network is cut. Raises `BadStudy` for unknown stages."""
    task, method = study.bound(), study.build_method()
    with FakeTensorMode():
        model = task.build(study.seed)
    stages = task.stages(model)
    cut = cut_at(stages, cut=split.cut, back=split.back, labels=split.labels)
    bare = case_bytes(task, cut, study.elements.size, DTYPES["fp32"]).bare
    if bare:
        yield (
            f'topology.cut = "{split.cut}" would send the {bare[0]} itself to the server; '
            "cut after a stage that takes it in"
        )
    travels = travelling(model, task, method, norm_buffers=study.training.norm_buffers)
    stays = _staying(model, cut, travels)
    if stays:
        yield (
            f"{_owner(stays, task, model, method)} must stay at the site, and topology.cut = "
            f'"{split.cut}" puts it at the server (for example {stays}); move the cut'
        )


def _staying(model: nn.Module, cut: Cut, travels: Filter) -> str:
    """Name a tensor of the server's stages that must not leave a site, if there is one."""
    tensors = model.state_dict().items()
    names = [name for name, tensor in tensors if tensor.is_floating_point()]
    return next((name for name in names if cut.at_server(name) and not travels(name)), "")


def _owner(tensor: str, task: Task, model: nn.Module, method: Method) -> str:
    """Say which group keeps a tensor at the site; the method's own private groups first."""
    groups = [name for name, group in task.groups(model).items() if group(tensor)]
    private = [name for name in method.private if name in groups]
    return f"the group '{[*private, *(n for n in groups if n not in UNIONS)][0]}'"
