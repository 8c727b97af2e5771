"""The synthesis task: generators translate slices, critics of each site judge them."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Self

import torch
from torch import Tensor, nn

from grandrounds.data.case import Cohort, Split
from grandrounds.messages import CaseScore
from grandrounds.metrics.features import gabor
from grandrounds.metrics.images import nrmse, psnr, ssim
from grandrounds.metrics.summary import summary
from grandrounds.models.norm import Norm
from grandrounds.precision import full
from grandrounds.tasks.coding import Coding, Pair
from grandrounds.tasks.critics import Judges
from grandrounds.tasks.guarded import Guarded
from grandrounds.tasks.networks import (
    CODED,
    CONTRASTS,
    Shape,
    TwoWay,
    build_network,
    chosen,
    shape_of,
    spread,
)
from grandrounds.tasks.paired import Paired
from grandrounds.tasks.pool import ImagePool
from grandrounds.tasks.slices import Augmentation, Slices, check_masks, slices_of
from grandrounds.tasks.task import Batch, Picture
from grandrounds.tasks.translation import Translator, groups_of, unit
from grandrounds.tasks.unpaired import Cycle, Side
from grandrounds.weights import Filter, Weights, starting_with

if TYPE_CHECKING:
    from grandrounds.tasks.synthesis import Synthesis

MEASURES = {"psnr": psnr, "ssim": ssim, "nrmse": nrmse}


@dataclass(frozen=True)
class SynthesisTask:
    """Adversarial contrast translation. Dalmaz et al. 2024; least-squares GAN beside L1."""

    options: "Synthesis"
    coding: Coding
    pairs: Mapping[str, tuple[Pair, ...]]
    guests: Mapping[str, tuple[Pair, ...]] = field(default_factory=dict[str, tuple[Pair, ...]])
    pool: ImagePool = field(default_factory=lambda: ImagePool(0))

    @property
    def metric(self) -> str:
        """Watch PSNR."""
        return self.options.metric

    @property
    def cases_at_once(self) -> int:
        """Score eight slices at a time."""
        return 8

    @property
    def learning_rates(self) -> Mapping[str, float]:
        """Slow or speed the mapper."""
        return {"generator.mapper.": self.options.mapper_rate}

    @property
    def shape(self) -> Shape:
        """Give the generator's dimensions."""
        return shape_of(self.options, self.coding, self.norm)

    @property
    def norm(self) -> Norm:
        """Say which norm the networks have."""
        return "batch" if self.options.norm == "batch" else "instance"

    def build(self, seed: int) -> Translator:
        """Build generator and critics; the same seed gives the same bits."""
        two_way = self._unpaired and self.options.generator != CODED
        generator = build_network(self.shape, seed=seed, two_way=two_way)
        o, names = self.options, self._critics()
        size = {"width": o.critic_width, "layers": o.critic_layers}
        return Translator(generator, self._judges.build(names, **size, norm=self.norm, seed=seed))

    @property
    def _unpaired(self) -> bool:
        return self.options.pairing == "unpaired"

    @property
    def _judges(self) -> Judges:
        per_task = self.options.critics == "per-task"
        return Judges(self.coding.contrasts, per_task=per_task, both_ways=self._unpaired)

    def _critics(self) -> tuple[str, ...]:
        pairs = [pair for own in self.pairs.values() for pair in own]
        return self._judges.names(pairs) if self.options.adversarial else ()

    def blank(self, size: tuple[int, int]) -> Batch:
        """Give a batch of one case without content."""
        site, pairs = next(iter(self.pairs.items()))
        image_B1HW = torch.zeros(1, 1, *size)
        contrasts = [self.coding.contrasts.index(c) for c in (pairs[0].source, pairs[0].target)]
        return {
            "source": image_B1HW,
            "target": image_B1HW,
            "code": self.coding.code(site, pairs[0])[None],
            "pair": torch.tensor([contrasts]),
        }

    def losses(self, model: nn.Module, batch: Batch) -> Iterator[tuple[str, Tensor]]:
        """Yield the loss of each critic concerned, then the generator's (Dalmaz et al. 2024)."""
        assert isinstance(model, Translator)
        if self._unpaired:
            yield from self._cycle_losses(model, batch)
        else:
            yield from self.judge(model, self._translated(model, batch), batch)

    def _cycle_losses(self, model: Translator, batch: Batch) -> Iterator[tuple[str, Tensor]]:
        o, judges = self.options, self._judges
        pairs = judges.pairs(batch)
        ways = [pair.reversed for pair in pairs]
        site = next(iter(self.pairs))  # a direction's code is the same at every site
        code = torch.stack([self.coding.code(site, way) for way in ways]).to(batch["code"])
        there = Side(batch["source"], batch["code"], judges.rows(pairs))
        back = Side(batch["target"], code, judges.rows(ways))
        both_ways = Cycle(o.adversarial, o.cycle, o.identity, self._guard, self.pool)
        yield from both_ways.losses(model.generator, model.critics, there, back)

    def _translated(self, model: Translator, batch: Batch) -> Tensor:
        """Make each target from its source, (B, 1, H, W) in [-1, 1]."""
        if self.options.generator != CONTRASTS:
            return model.generator(batch["source"], batch["code"])
        source, target = batch["pair"].unbind(1)
        images = spread(batch["source"], source, len(self.coding.contrasts))
        return chosen(model.generator(images, batch["code"]), target)

    def judge(self, model: nn.Module, output: Tensor, batch: Batch) -> Iterator[tuple[str, Tensor]]:
        """Yield the losses of an image that the generator made."""
        assert isinstance(model, Translator)
        judges = self._judges
        judged = judges.rows(judges.pairs(batch)) if self.options.adversarial else {}
        yield from self._paired.losses(model.critics, output, batch, judged)

    @property
    def _paired(self) -> Paired:
        o = self.options
        return Paired(o.adversarial, o.l1, self._guard, apart=self.norm == "batch")

    @property
    def _guard(self) -> Guarded:
        return Guarded(self.options.critic_clip, self.options.critic_noise)

    def predict(self, model: nn.Module, batch: Batch) -> Tensor:
        """Synthesise the targets, (B, 1, H, W) in [0, 1]."""
        assert isinstance(model, Translator)
        model.eval()
        for module in model.generator.modules():
            if isinstance(module, nn.Dropout):
                module.train(self.options.dropout_at_evaluation)
        return self.read(self._translated(model, batch))

    def read(self, output: Tensor) -> Tensor:
        """Bring the generator's image to [0, 1]."""
        return unit(full(output))

    def stages(self, model: nn.Module) -> Mapping[str, Filter]:
        """Name the generator's stages, each with its personalisation block."""
        assert isinstance(model, Translator)
        found = model.generator.stages()
        return {n: starting_with(*(f"generator.{p}" for p in own)) for n, own in found.items()}

    def inputs(self, batch: Batch) -> Weights:
        """Give source and code; the plain generator reads no code."""
        reads = self.options.generator in ("personalised", CODED)
        return {name: batch[name] for name in ("source", "code")[: 1 + reads]}

    def run(self, model: nn.Module, stages: Sequence[str], carried: Weights) -> Weights:
        """Run stages of the generator."""
        assert isinstance(model, Translator)
        assert not isinstance(model.generator, TwoWay), "refused by the study's checks"
        return model.generator.run(stages, carried)

    def score(self, prediction: Tensor, batch: Batch) -> dict[str, Tensor]:
        """Score each case: PSNR (dB), SSIM, NRMSE, Gabor distance, over the image, data range 1.

        Where the study asks for it, the first three inside the brain mask too.
        """
        target = unit(batch["target"])
        scores = {name: measure(prediction, target) for name, measure in MEASURES.items()}
        scores["gabor"] = gabor(prediction, target)
        if "mask" in batch:
            inside = batch["mask"]
            scores |= {f"{n}_brain": m(prediction, target, inside) for n, m in MEASURES.items()}
        return scores

    def summary(self, scores: Sequence[CaseScore]) -> dict[str, float]:
        """Average over patients, then tasks, then sites."""
        return summary(scores)

    def picture(self, prediction: Tensor, batch: Batch) -> Picture:
        """Give source, target and prediction of the first case, each (H, W) in [0, 1]."""
        images = {
            "source": unit(batch["source"]),
            "target": unit(batch["target"]),
            "prediction": prediction,
        }
        return {name: image[0, 0].cpu().numpy() for name, image in images.items()}

    def groups(self, model: nn.Module) -> Mapping[str, Filter]:
        """Name the parameter groups; critics judge a site's own tasks, so "all" leaves them out."""
        return groups_of(model)

    def uses(self, site: str) -> Filter:
        """Select the generator and the critics of a site's own tasks."""
        own = self._judges.names(self._known.get(site, sum(self.pairs.values(), ())))
        return starting_with("generator.", *(f"critics.{name}." for name in own))

    def seen_by(self, site: str) -> Self:
        """Let the network be told this site's code for every case."""
        return replace(self, coding=replace(self.coding, reader=site))

    @property
    def memory(self) -> Weights:
        """Give the images of the pool."""
        return self.pool.memory

    def recalling(self, memory: Mapping[str, Tensor]) -> Self:
        """Give the task with a pool of the images of earlier rounds."""
        return replace(self, pool=ImagePool.of(self.options.image_pool, memory))

    @property
    def _known(self) -> Mapping[str, tuple[Pair, ...]]:
        return {**self.pairs, **self.guests}

    def training_examples(self, cohorts: Sequence[Cohort]) -> Slices:
        """Give each training slice once; its task is drawn when it is used."""
        return self._examples(cohorts, "train", each_pair=False)

    def evaluation_examples(self, cohorts: Sequence[Cohort], split: Split) -> Slices:
        """Give each slice of a split once for each of its site's tasks that it can serve."""
        return self._examples(cohorts, split, each_pair=True)

    def _examples(self, cohorts: Sequence[Cohort], split: Split, *, each_pair: bool) -> Slices:
        found = [slices_of(c, split, self._known[c.site], each_pair=each_pair) for c in cohorts]
        o = self.options
        mask = "" if o.masked == "none" else o.masked
        check_masks(cohorts, mask)
        augmentation = Augmentation(o.flip, o.intensity, o.crop)
        return Slices(sum(found, ()), self.coding, augmentation, mask)
