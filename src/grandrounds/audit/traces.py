"""What leaves a site, made again at the site, and what an attacker compares with it.

The worst case is the gradient of one image in a single step, at the run's tested weights. The
study's own setting is the update of round 1, which the site trains once more from the same weights
with the same seeds, and which has passed whatever guards the study has. In split learning it is
what crosses the cut for one image.

Shapes: N image, C channel (source, target), H, W.
"""

import tempfile
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from copy import deepcopy
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor, nn

from grandrounds.audit.inversion import (
    ImagePrior,
    Objective,
    feature_distance,
    image_prior,
    update_distance,
)
from grandrounds.audit.subject import AuditedSite
from grandrounds.core.messages import Train
from grandrounds.core.seeds import seed_for
from grandrounds.core.state import State
from grandrounds.core.weights import Weights, select
from grandrounds.models.layers import Dropout
from grandrounds.runs.build import make_blueprint
from grandrounds.tasks.synthesis.networks import CONTRASTS, Single, Translator
from grandrounds.tasks.synthesis.task import SynthesisTask
from grandrounds.tasks.task import Batch, Examples

SOFT = 0.05  # errors below this do not count by their sign alone, in [-1, 1]
IMAGES = ("source", "target")
GENERATOR_PART = "generator"


@dataclass(frozen=True)
class Attackable:
    """A synthesis network as an attacker has it, and what it knows of an image beside its pixels.

    `known` are the tensors of a batch of one other than the images: the codes of site and task.
    """

    task: SynthesisTask
    model: Translator
    known: Batch
    travels: Callable[[str], bool]

    @staticmethod
    def of(site: AuditedSite, weights: Weights, known: Batch) -> "Attackable":
        """Take a site's network with these weights, without dropout, on the CPU."""
        task = site.task
        assert isinstance(task, SynthesisTask)
        site.scorer.trainer.load(weights)
        model = deepcopy(site.scorer.trainer.model).cpu().float().train()
        for module in model.modules():
            if isinstance(module, Dropout):
                module.eval()
        assert isinstance(model, Translator)
        known = {name: tensor for name, tensor in known.items() if name not in IMAGES}
        return Attackable(task, model, known, site.scorer.plan.travels)

    @cached_property
    def shared(self) -> dict[str, nn.Parameter]:
        """Return the parameters of the generator whose updates leave the site."""
        named = self.model.named_parameters()
        return {n: p for n, p in named if n.startswith(f"{GENERATOR_PART}.") and self.travels(n)}

    def output(self, images_CHW: Tensor, stages: Sequence[str] = ()) -> dict[str, Tensor]:
        """Run the network, or its first stages, on the source."""
        task, model = self.task, self.model
        carried = task.inputs({**self.known, "source": images_CHW[None, :1]})
        return task.run(model, stages or tuple(task.stages(model)), carried)

    def gradient(self, images_CHW: Tensor, *, create_graph: bool = False) -> list[Tensor | None]:
        """Return the gradient of the smoothed absolute error for source and target."""
        error = self.output(images_CHW)["output"] - images_CHW[None, 1:]
        loss = (error.square() + SOFT**2).sqrt().mean()
        shared = list(self.shared.values())
        return list(torch.autograd.grad(loss, shared, create_graph=create_graph, allow_unused=True))

    def true_gradient(self, images_CHW: Tensor) -> list[Tensor]:
        """Return the gradient by which the study itself trains, with its critics' part."""
        batch = {**self.known, "source": images_CHW[None, :1], "target": images_CHW[None, 1:]}
        losses = (
            loss for part, loss in self.task.losses(self.model, batch) if part == GENERATOR_PART
        )
        shared = list(self.shared.values())
        found = torch.autograd.grad(next(losses), shared, allow_unused=True, materialize_grads=True)
        return list(found)

    def from_update(self, observed: Sequence[Tensor]) -> Objective:
        """Return how far images' gradients are from the direction of an update."""

        def objective(images_CHW: Tensor) -> Tensor:
            return update_distance(self.gradient(images_CHW, create_graph=True), observed)

        return objective

    def from_features(self, head: Sequence[str], observed: Mapping[str, Tensor]) -> Objective:
        """Return how far the features that images send across the cut are from those seen."""
        names = [name for name, tensor in observed.items() if tensor.is_floating_point()]

        def objective(images_CHW: Tensor) -> Tensor:
            found = self.output(images_CHW, head)
            return feature_distance([found[n] for n in names], [observed[n] for n in names])

        return objective


def why_not(site: AuditedSite) -> str:
    """Say why images of a study cannot be sought by this attack; empty where they can."""
    task = site.task
    if not isinstance(task, SynthesisTask):
        return (
            f'The attack seeks source and target of synthesis, not of "{site.run.study.task.kind}"'
        )
    if task.options.pairing == "unpaired" or task.options.generator == CONTRASTS:
        return "The attack needs a generator that is trained on pairs of one contrast each"
    model = site.scorer.trainer.model
    if not (isinstance(model, Translator) and isinstance(model.generator, Single)):
        return "The attack knows the house's own generators alone"
    return ""


def pairs_of(batch: Batch) -> Tensor:
    """Return the images of a batch, (N, 2, H, W) in [-1, 1], on the CPU."""
    return torch.cat([batch[name] for name in IMAGES], 1).cpu().float()


def first_label(site: AuditedSite) -> str:
    """Return the label of the first of the site's tasks."""
    return site.run.study.roster[site.name][0].replace(" ", "")


def others_images(site: AuditedSite, components: int) -> ImagePrior:
    """Return the prior from the site's patients who did not train, for its first task."""
    found = [
        pairs_of(examples.batch([index], None))
        for split in ("validation", "test")
        for examples in [site.task.evaluation_examples(site.data.cohorts, split)]
        for index in range(len(examples))
        if examples.case(index).task == first_label(site)
    ]
    return image_prior(torch.cat(found), components)


def attacked_images(site: AuditedSite, most: int) -> tuple[Examples, list[int]]:
    """Return the middle image of each of some training patients, for the site's first task."""
    examples = site.task.evaluation_examples(site.data.cohorts, "train")
    by_patient: dict[str, list[int]] = {}
    for index in range(len(examples)):
        case = examples.case(index)
        if case.task == first_label(site):
            by_patient.setdefault(case.patient, []).append(index)
    return examples, [each[len(each) // 2] for each in by_patient.values()][:most]


def noise_like(tensors: Sequence[Tensor], seed: int) -> list[Tensor]:
    """Return Gaussian noise of each tensor's own size, which knows no patient."""
    generator = torch.Generator().manual_seed(seed_for(seed, "noise in place of a trace"))
    return [
        torch.randn(each.shape, generator=generator) * each.square().mean().sqrt()
        for each in tensors
    ]


def first_update(site: AuditedSite) -> tuple[Weights, Weights]:
    """Train the site's round 1 once more; return where it started, and what a receiver makes of it.

    Guards have protected what is sent, and the receiver undoes what it can undo.
    """
    plan, machine = site.scorer.plan, site.scorer.machine
    blueprint = make_blueprint(plan, machine)
    start = blueprint.start.weights
    with (
        tempfile.TemporaryDirectory(prefix="grandrounds-") as scratch,
        ThreadPoolExecutor(1) as disk,
    ):
        member = blueprint.site(site.data, Path(scratch), disk)
        reply = member.answer(Train(round=1, since=0, weights=start))
    own = select(member.first_weights(), member.uses)
    (seen,) = plan.method.guards.admit([reply], State(own | start, 0))
    return own | start, seen.weights
