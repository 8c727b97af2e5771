"""Contrast synthesis: a generator translates slices, critics of each site judge them."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal, cast

import torch
from torch import Tensor, nn

from grandrounds.data.case import Cohort, Split
from grandrounds.data.elements import Elements
from grandrounds.messages import CaseScore
from grandrounds.metrics.images import nrmse, psnr, ssim
from grandrounds.metrics.summary import summary
from grandrounds.models.discriminator import Discriminator, build_discriminator
from grandrounds.models.generator import GeneratorShape, build_generator
from grandrounds.precision import full
from grandrounds.seeds import seed_for
from grandrounds.tasks.checks import check_counts, check_shares, check_size, require
from grandrounds.tasks.slices import Augmentation, Coding, Pair, Slices, check_pair, slices_of
from grandrounds.tasks.task import Batch, Picture
from grandrounds.tasks.translation import Translator, critic_loss, groups_of, realism, unit
from grandrounds.weights import Filter, Weights, starting_with

SINGLE = "any"
SMALL = {
    "width": 16,
    "blocks": 4,
    "latent": 128,
    "critic_width": 16,
    "padding": "zero",
    "dropout": 0.0,
}
LEAST = {
    "width": 8,
    "blocks": 2,
    "latent": 1,
    "mapper_layers": 1,
    "critic_width": 1,
    "critic_layers": 1,
}


@dataclass(frozen=True)
class Synthesis:
    """Options of the synthesis task; `model` = "small" changes the defaults to a network for CPUs.

    `generator` "auto" is "personalised" for the method pflsynth and "plain" for the others;
    `critics` is one per task or a single one; `adversarial` and `l1` weigh the generator's loss;
    `equalised` and `dropout_at_evaluation` are how the released pFLSynth code differs (`parity`).
    """

    metric: ClassVar[str] = "psnr"
    sizes: ClassVar[Mapping[str, Mapping[str, object]]] = {"small": SMALL}

    kind: Literal["synthesis"] = "synthesis"
    model: Literal["full", "small"] = "full"
    generator: Literal["auto", "personalised", "plain"] = "auto"
    codes: Literal["both", "site", "task", "none"] = "both"
    width: int = 64
    blocks: int = 9
    latent: int = 512
    mapper_layers: int = 6
    mapper_rate: float = 1.0
    norm: Literal["instance", "batch"] = "instance"
    padding: Literal["reflect", "zero"] = "reflect"
    dropout: float = 0.5
    equalised: bool = False
    dropout_at_evaluation: bool = False
    critics: Literal["per-task", "single"] = "per-task"
    critic_width: int = 64
    critic_layers: int = 3
    adversarial: float = 1.0
    l1: float = 100.0
    flip: float = 0.5
    intensity: Literal["volume", "slice"] = "volume"
    crop: Literal["none", "resize-crop"] = "none"

    @property
    def has_statistics(self) -> bool:
        """Batch norm keeps running statistics, instance norm does not."""
        return self.norm == "batch"

    def check(self, elements: Elements, sites: Mapping[str, Sequence[str]]) -> None:
        """Refuse what no generator can be made of. Raises `BadStudy`."""
        check_counts(self, LEAST)
        check_shares(self, ("dropout", "flip"))
        require(len(elements.contrasts) >= 2, "elements.contrasts must name two contrasts or more")
        check_size(elements, least=32, multiple=4)
        for site, labels in sites.items():
            for label in labels:
                check_pair(site, label, elements)

    def bind(self, elements: Elements, sites: Mapping[str, Sequence[str]]) -> "SynthesisTask":
        """Make a consortium's task; `sites` maps each, in roster order, to its task labels."""
        pairs = {
            site: tuple(Pair.parse(label) for label in labels) for site, labels in sites.items()
        }
        coding = Coding(tuple(sites), elements.contrasts, self.codes)
        return SynthesisTask(self, coding, pairs)


@dataclass(frozen=True)
class SynthesisTask:
    """Adversarial contrast translation. Dalmaz et al. 2024; least-squares GAN beside L1."""

    options: Synthesis
    coding: Coding
    pairs: Mapping[str, tuple[Pair, ...]]

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
    def shape(self) -> GeneratorShape:
        """Give the generator's dimensions."""
        o = self.options
        return GeneratorShape(
            code_size=self.coding.size,
            width=o.width,
            blocks=o.blocks,
            latent=o.latent,
            mapper_layers=o.mapper_layers,
            personalised=o.generator == "personalised",
            norm=o.norm,
            padding=o.padding,
            dropout=o.dropout,
            equalised=o.equalised,
        )

    def build(self, seed: int) -> Translator:
        """Build generator and critics; the same seed gives the same bits."""
        generator = build_generator(self.shape, seed=seed_for(seed, "generator"))
        return Translator(generator, {name: self._critic(seed, name) for name in self._critics()})

    def _critics(self) -> tuple[str, ...]:
        if not self.options.adversarial:
            return ()
        return tuple(dict.fromkeys(self._critic_of(p) for ps in self.pairs.values() for p in ps))

    def _critic_of(self, pair: Pair) -> str:
        return pair.label if self.options.critics == "per-task" else SINGLE

    def _critic(self, seed: int, name: str) -> Discriminator:
        o = self.options
        return build_discriminator(
            width=o.critic_width,
            layers=o.critic_layers,
            norm=o.norm,
            seed=seed_for(seed, "critic", name),
        )

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
        yield from self.judge(model, model.generator(batch["source"], batch["code"]), batch)

    def judge(self, model: nn.Module, output: Tensor, batch: Batch) -> Iterator[tuple[str, Tensor]]:
        """Yield the losses of an image that the generator made."""
        assert isinstance(model, Translator)
        source, target, fake = batch["source"], batch["target"], output
        judged = self._judged(batch)
        apart = self.options.norm == "batch"
        for name, rows in judged.items():
            images = source[rows], target[rows], fake[rows]
            yield f"critics.{name}", critic_loss(model.critic(name), *images, apart=apart)
        verdicts = [realism(model.critic(n), source[r], fake[r]) for n, r in judged.items()]
        distance = (full(fake) - target).abs().mean()
        adversarial = torch.stack(verdicts).sum() / len(source) if verdicts else 0.0
        yield "generator", self.options.adversarial * adversarial + self.options.l1 * distance

    def _judged(self, batch: Batch) -> dict[str, Tensor]:
        """Map each critic that this batch concerns to its rows."""
        rows: dict[str, list[int]] = {}
        if self.options.adversarial:
            contrasts = self.coding.contrasts
            pairs = cast(list[list[int]], batch["pair"].tolist())  # pyright: ignore[reportUnknownMemberType]
            for row, (source, target) in enumerate(pairs):
                pair = Pair(contrasts[source], contrasts[target])
                rows.setdefault(self._critic_of(pair), []).append(row)
        return {name: torch.tensor(found) for name, found in rows.items()}

    def predict(self, model: nn.Module, batch: Batch) -> Tensor:
        """Synthesise the targets, (B, 1, H, W) in [0, 1]."""
        assert isinstance(model, Translator)
        model.eval()
        for module in model.generator.modules():
            if isinstance(module, nn.Dropout):
                module.train(self.options.dropout_at_evaluation)
        return self.read(model.generator(batch["source"], batch["code"]))

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
        names = ("source", "code") if self.shape.personalised else ("source",)
        return {name: batch[name] for name in names}

    def run(self, model: nn.Module, stages: Sequence[str], carried: Weights) -> Weights:
        """Run stages of the generator."""
        assert isinstance(model, Translator)
        return model.generator.run(stages, carried)

    def score(self, prediction: Tensor, batch: Batch) -> dict[str, Tensor]:
        """Score each case: PSNR (dB), SSIM, NRMSE, over the whole image, data range 1."""
        target = unit(batch["target"])
        return {
            "psnr": psnr(prediction, target),
            "ssim": ssim(prediction, target),
            "nrmse": nrmse(prediction, target),
        }

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
        own = {self._critic_of(pair) for pair in self.pairs.get(site, sum(self.pairs.values(), ()))}
        return starting_with("generator.", *(f"critics.{name}." for name in own))

    def training_examples(self, cohorts: Sequence[Cohort]) -> Slices:
        """Give each training slice once; its task is drawn when it is used."""
        return self._examples(cohorts, "train", each_pair=False)

    def evaluation_examples(self, cohorts: Sequence[Cohort], split: Split) -> Slices:
        """Give each slice of a split once for each of its site's tasks that it can serve."""
        return self._examples(cohorts, split, each_pair=True)

    def _examples(self, cohorts: Sequence[Cohort], split: Split, *, each_pair: bool) -> Slices:
        found = [slices_of(c, split, self.pairs[c.site], each_pair=each_pair) for c in cohorts]
        o = self.options
        return Slices(sum(found, ()), self.coding, Augmentation(o.flip, o.intensity, o.crop))
