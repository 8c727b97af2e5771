"""The synthesis task combines the network, the losses and the images that a study chooses."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import ClassVar, Literal, Self

import torch
from torch import Tensor, nn

from grandrounds.core.device import to_float32
from grandrounds.core.errors import require
from grandrounds.core.messages import CaseScore
from grandrounds.core.seeds import seed_for
from grandrounds.core.weights import Filter, Weights, name_starts
from grandrounds.data.cohort import Cohort, SplitName
from grandrounds.data.elements import Elements
from grandrounds.models.generator import BlockPlace, GeneratorShape
from grandrounds.models.imported import Imported
from grandrounds.models.norms import Norm, own_statistics
from grandrounds.models.translation_unet import TranslationUNetShape
from grandrounds.tasks.metrics import gabor, mean_over_patients, nrmse, psnr, ssim
from grandrounds.tasks.outside import (
    Known,
    Outside,
    build_loss,
    build_outside,
    groups_from_outside,
    loss_from_outside,
)
from grandrounds.tasks.synthesis.examples import (
    Augmentation,
    Codes,
    ContrastPair,
    SiteTaskCode,
    Slices,
    check_masks,
    check_pair,
)
from grandrounds.tasks.synthesis.losses import (
    CycleLosses,
    GradientGuard,
    ImagePool,
    PairedLosses,
    Side,
)
from grandrounds.tasks.synthesis.networks import (
    CODED,
    CONTRASTS,
    UNETS,
    Critics,
    Shape,
    Single,
    SynthesisNetwork,
    Translator,
    build_network,
    groups_of,
    one_channel_each,
    own_channel,
    unit,
)
from grandrounds.tasks.task import (
    NO_SITES,
    Batch,
    Labels,
    Picture,
    check_shares,
    check_size,
    list_slices,
    list_visits,
    one_by_one,
    require_counts,
)

MEASURES = {"psnr": psnr, "ssim": ssim, "nrmse": nrmse}
SMALL_NETWORK = {
    "width": 16,
    "blocks": 4,
    "latent": 128,
    "critic_width": 16,
    "unet_width": 8,
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
    "unet_width": 1,
    "unet_levels": 1,
    "image_pool": 0,
}
WEIGHTS = ("adversarial", "l1", "cycle", "identity", "critic_clip", "critic_noise")


@dataclass(frozen=True)
class Synthesis(Outside):
    """Options of the synthesis task; `model` = "small" changes the defaults to a network for CPUs.

    `generator` "auto" is the method's own: "personalised" for pflsynth, a U-Net for some, "plain"
    (the ResNet) for the others; `norm` "auto" is "batch" where a method is about batch norms.
    `channel_weights` = false takes them out of the personalisation blocks. `block_place` = "branch"
    has the bottleneck's blocks in the residual branch, so that none normalises the residual sum;
    in the published network ("after") each does. `codes` = "protocol" puts how source and target
    were scanned (sequence, times, flip angle, field, voxels) in the place of the site's name, so
    that equal protocols have equal codes. `critics` is one per task or a single one;
    `adversarial` and `l1` weigh the generator's loss. `pairing` = "unpaired" trains without pairs
    of images, by `cycle` and `identity` losses; a pool of `image_pool` older images then stands in
    for half of the new ones that a critic is shown. `critic_clip` above 0 clips each image's
    gradient from its critic, and `critic_noise` adds noise to it (FedMed-GAN). `masked` = "brain"
    scores inside the brain mask, too.
    `equalised`, `dropout_at_evaluation` and `statistics_at_evaluation` are how the released
    pFLSynth code differs (`parity`): it never leaves training mode, so with "image" a batch norm
    normalises each image by its own statistics, and not by those that it has counted ("running").
    `network` takes the place of the plain generator, beside the same critics, and `loss` that of
    the mean absolute difference, which `l1` weighs.
    """

    metric: ClassVar[str] = "psnr"
    sizes: ClassVar[Mapping[str, Mapping[str, object]]] = {"small": SMALL_NETWORK}
    replaced: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "network": ("width", "blocks", "padding", "dropout", "equalised", "dropout_at_evaluation")
    }

    kind: Literal["synthesis"] = "synthesis"
    model: Literal["full", "small"] = "full"
    generator: Literal["auto", "personalised", "plain", "unet", "contrasts-unet", "coded-unet"] = (
        "auto"
    )
    codes: Codes = "both"
    width: int = 64
    blocks: int = 9
    latent: int = 512
    mapper_layers: int = 6
    mapper_rate: float = 1.0
    channel_weights: bool = True
    block_place: BlockPlace | None = None  # none: "branch", and "after" with parity
    unet_width: int = 32
    unet_levels: int = 4
    norm: Literal["auto", "instance", "batch"] = "auto"
    padding: Literal["reflect", "zero"] = "reflect"
    dropout: float = 0.5
    equalised: bool = False
    dropout_at_evaluation: bool = False
    statistics_at_evaluation: Literal["running", "image"] | None = None  # none: "running"
    critics: Literal["per-task", "single"] = "per-task"
    critic_width: int = 64
    critic_layers: int = 3
    adversarial: float = 1.0
    l1: float = 100.0
    pairing: Literal["paired", "unpaired"] = "paired"
    cycle: float = 10.0
    identity: float = 10.0
    image_pool: int = 0
    critic_clip: float = 0.0
    critic_noise: float = 2.14
    flip: float = 0.5
    intensity: Literal["volume", "slice"] = "volume"
    crop: Literal["none", "resize-crop", "released"] = "none"
    masked: Literal["none", "brain"] = "none"

    @property
    def has_statistics(self) -> bool:
        return self.norm == "batch"

    def check(self, elements: Elements, sites: Mapping[str, Sequence[str]]) -> None:
        """Refuse options that no generator can be built with. Raises `BadStudy`."""
        require_counts(self, LEAST)
        check_shares(self, ("dropout", "flip"))
        self._check_outside()
        for name in WEIGHTS:
            require(getattr(self, name) >= 0, f"task.{name} must be 0 or more")
        require(len(elements.contrasts) >= 2, "elements.contrasts must name two contrasts or more")
        multiple = 2**self.unet_levels if self.generator.endswith("unet") else 4
        check_size(elements, least=32, multiple=multiple)
        for site, labels in sites.items():
            for label in labels:
                check_pair(site, label, elements)
        self._check_network(
            {ContrastPair.parse(label) for labels in sites.values() for label in labels}
        )

    def _check_outside(self) -> None:
        require(
            not self.network or (self.generator, self.pairing) == ("plain", "paired"),
            'task.network takes the place of task.generator = "plain" with task.pairing = '
            '"paired"; the other generators are built for their methods',
        )
        require(
            not self.loss or self.pairing == "paired",
            'task.loss needs task.pairing = "paired": without pairs there is no target',
        )
        self.check_outside(self.sizes.get(self.model))

    def _check_network(self, pairs: set[ContrastPair]) -> None:
        """Refuse options that exclude each other or have no effect."""
        require(
            self.channel_weights or self.generator == "personalised",
            "task.channel_weights = false would do nothing: only the personalised generator has "
            "channel weights",
        )
        require(
            self.codes != "protocol" or self.generator == "personalised",
            'task.codes = "protocol" would do nothing: only the personalised generator has a '
            f'mapper that reads such a code, not "{self.generator}"',
        )
        require(
            self.block_place is None or self.generator == "personalised",
            f'task.block_place = "{self.block_place}" would do nothing: only the personalised '
            f'generator has personalisation blocks in its bottleneck, not "{self.generator}"',
        )
        require(
            self.masked == "none" or self.crop == "none",
            f'task.masked = "brain" and task.crop = "{self.crop}" exclude each other: a mask would '
            "not lie on the cropped image",
        )
        require(
            not self.critic_clip or self.adversarial > 0,
            "task.critic_clip would do nothing: task.adversarial is 0, so no critic is trained",
        )
        require(
            not self.image_pool or self.pairing == "unpaired",
            'task.image_pool would do nothing: it is for task.pairing = "unpaired"',
        )
        if self.pairing == "paired":
            return
        require(
            self.generator in ("unet", "coded-unet"),
            'task.pairing = "unpaired" needs task.generator = "unet" or "coded-unet", '
            f'not "{self.generator}"',
        )
        require(
            self.adversarial > 0,
            'task.pairing = "unpaired" needs task.adversarial above 0: '
            "without pairs, critics are all that says how an image should look",
        )
        both = {contrast for pair in pairs for contrast in (pair.source, pair.target)}
        require(
            self.generator == "coded-unet" or len(both) == 2,
            'task.pairing = "unpaired" with task.generator = "unet" has one network for each '
            f"direction between two contrasts; this study has {', '.join(sorted(both))}. "
            'Use task.generator = "coded-unet".',
        )

    def bind(
        self, elements: Elements, sites: Labels, new_sites: Labels = NO_SITES
    ) -> "SynthesisTask":
        """Make a consortium's task; `sites` maps each site, in roster order, to its task labels.

        The site code of a new site is the mean of all sites' codes.
        """
        pairs = _parse(sites)
        unpaired = self.pairing == "unpaired"
        codes = "direction" if unpaired or self.generator == CODED else self.codes
        distinct = dict.fromkeys(pair for site_pairs in pairs.values() for pair in site_pairs)
        if unpaired:
            distinct |= dict.fromkeys(pair.reversed for pair in distinct)
        coding = SiteTaskCode(tuple(sites), elements.contrasts, codes, tuple(distinct))
        return SynthesisTask(self, coding, pairs, _parse(new_sites), size=tuple(elements.size))


def _parse(sites: Labels) -> dict[str, tuple[ContrastPair, ...]]:
    return {
        site: tuple(ContrastPair.parse(label) for label in labels) for site, labels in sites.items()
    }


@dataclass(frozen=True)
class SynthesisTask:
    """Adversarial contrast translation: a least-squares GAN loss beside L1. Dalmaz et al. 2024."""

    options: Synthesis
    coding: SiteTaskCode
    pairs: Mapping[str, tuple[ContrastPair, ...]]
    new_sites: Mapping[str, tuple[ContrastPair, ...]] = field(
        default_factory=dict[str, tuple[ContrastPair, ...]]
    )
    pool: ImagePool = field(default_factory=lambda: ImagePool(0))
    size: tuple[int, ...] = ()  # of a slice

    @property
    def metric(self) -> str:
        return self.options.metric

    @property
    def cases_at_once(self) -> int:
        return 8

    @property
    def learning_rates(self) -> Mapping[str, float]:
        """Return the multiplier of the mapper's learning rate."""
        return {"generator.mapper.": self.options.mapper_rate}

    @property
    def shape(self) -> Shape:
        return shape_of(self.options, self.coding, self.norm)

    @property
    def norm(self) -> Norm:
        return "batch" if self.options.norm == "batch" else "instance"

    @property
    def known(self) -> Known:
        return Known(2, 1, 1, self.size)

    @property
    def outside(self) -> Outside:
        return self.options

    def build(self, seed: int) -> Translator:
        generator = self._generator(seed)
        o, names = self.options, self._critics()
        size = {"width": o.critic_width, "layers": o.critic_layers}
        return Translator(
            generator, self._critic_set.build(names, **size, norm=self.norm, seed=seed)
        )

    def _generator(self, seed: int) -> SynthesisNetwork:
        if self.options.network:
            return build_outside(self.options, self.known, seed=seed_for(seed, "network"))
        two_way = self._unpaired and self.options.generator != CODED
        return build_network(self.shape, seed=seed, two_way=two_way)

    @property
    def _unpaired(self) -> bool:
        return self.options.pairing == "unpaired"

    @property
    def _critic_set(self) -> Critics:
        per_task = self.options.critics == "per-task"
        return Critics(self.coding.contrasts, per_task=per_task, both_ways=self._unpaired)

    def _critics(self) -> tuple[str, ...]:
        pairs = [pair for site_pairs in self.pairs.values() for pair in site_pairs]
        return self._critic_set.names(pairs) if self.options.adversarial else ()

    def blank(self, size: tuple[int, int]) -> Batch:
        """Return a batch of one case without content."""
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
        """Yield the loss of each critic with rows, then the generator's (Dalmaz et al. 2024)."""
        assert isinstance(model, Translator)
        if self._unpaired:
            yield from self._cycle_losses(model, batch)
        else:
            yield from self.losses_of_output(model, self._translate(model, batch), batch)

    def _cycle_losses(self, model: Translator, batch: Batch) -> Iterator[tuple[str, Tensor]]:
        o, critics = self.options, self._critic_set
        pairs = critics.pairs(batch)
        reverse_pairs = [pair.reversed for pair in pairs]
        site = next(iter(self.pairs))  # a direction's code is the same at every site
        code = torch.stack([self.coding.code(site, pair) for pair in reverse_pairs]).to(
            batch["code"]
        )
        there = Side(batch["source"], batch["code"], critics.rows(pairs))
        back = Side(batch["target"], code, critics.rows(reverse_pairs))
        cycle = CycleLosses(o.adversarial, o.cycle, o.identity, self._guard, self.pool)
        yield from cycle.losses(model.generator, model.critics, there, back)

    def _translate(self, model: Translator, batch: Batch) -> Tensor:
        """Make each target from its source, (B, 1, H, W) in [-1, 1]."""
        if self.options.generator != CONTRASTS:
            return model.generator(batch["source"], batch["code"])
        source, target = batch["pair"].unbind(1)
        images = one_channel_each(batch["source"], source, len(self.coding.contrasts))
        return own_channel(model.generator(images, batch["code"]), target)

    def losses_of_output(
        self, model: nn.Module, output: Tensor, batch: Batch
    ) -> Iterator[tuple[str, Tensor]]:
        """Yield the losses of an output of the generator."""
        assert isinstance(model, Translator)
        critics = self._critic_set
        judged = critics.rows(critics.pairs(batch)) if self.options.adversarial else {}
        yield from self._paired.losses(model.critics, output, batch, judged)

    @property
    def _paired(self) -> PairedLosses:
        o = self.options
        losses = PairedLosses(o.adversarial, o.l1, self._guard, apart=self.norm == "batch")
        return replace(losses, distance=self._distance) if self._from_outside else losses

    @cached_property
    def _from_outside(self) -> nn.Module | None:
        return build_loss(self.options)

    def _distance(self, made: Tensor, target: Tensor) -> Tensor:
        assert self._from_outside is not None, "only a study with a loss from outside asks for it"
        return loss_from_outside(self.options, self._from_outside, made, target)

    def distance(self, output: Tensor, batch: Batch) -> Tensor:
        """Return the study's loss from outside."""
        return self._distance(output, batch["target"])

    @property
    def _guard(self) -> GradientGuard:
        return GradientGuard(self.options.critic_clip, self.options.critic_noise)

    def predict(self, model: nn.Module, batch: Batch) -> Tensor:
        """Synthesise the targets, (B, 1, H, W) in [0, 1]."""
        assert isinstance(model, Translator)
        model.eval()
        for module in model.generator.modules():
            if isinstance(module, nn.Dropout):
                module.train(self.options.dropout_at_evaluation)
        if self.options.statistics_at_evaluation != "image":
            return self.to_prediction(self._translate(model, batch))
        with own_statistics(model.generator):
            images = [self._translate(model, row) for row in one_by_one(batch)]
        return self.to_prediction(torch.cat(images))

    def to_prediction(self, output: Tensor) -> Tensor:
        """Map the generator's image to [0, 1]."""
        return unit(to_float32(output))

    def stages(self, model: nn.Module) -> Mapping[str, Filter]:
        """Return the generator's stages, each with its personalisation block."""
        assert isinstance(model, Translator)
        assert not isinstance(model.generator, Imported), "refused by the study's checks"
        stages = model.generator.stages()
        return {
            n: name_starts(*(f"generator.{p}" for p in prefixes)) for n, prefixes in stages.items()
        }

    def inputs(self, batch: Batch) -> Weights:
        """Return source and code; the plain generator reads no code."""
        reads = self.options.generator in ("personalised", CODED)
        return {name: batch[name] for name in ("source", "code")[: 1 + reads]}

    def run(self, model: nn.Module, stages: Sequence[str], carried: Weights) -> Weights:
        assert isinstance(model, Translator)
        assert isinstance(model.generator, Single), "refused by the study's checks"
        return model.generator.run(stages, carried)

    def score(self, prediction: Tensor, batch: Batch) -> dict[str, Tensor]:
        """Score each case: PSNR (dB), SSIM, NRMSE, Gabor distance, over the image, data range 1.

        With `masked` the first three are also computed inside the brain mask.
        """
        target = unit(batch["target"])
        scores = {name: measure(prediction, target) for name, measure in MEASURES.items()}
        scores["gabor"] = gabor(prediction, target)
        if "mask" in batch:
            inside = batch["mask"]
            scores |= {f"{n}_brain": m(prediction, target, inside) for n, m in MEASURES.items()}
        return scores

    def summary(self, scores: Sequence[CaseScore]) -> dict[str, float]:
        return mean_over_patients(scores)

    def picture(self, prediction: Tensor, batch: Batch) -> Picture:
        """Return source, target and prediction of the first case, each (H, W) in [0, 1]."""
        images = {
            "source": unit(batch["source"]),
            "target": unit(batch["target"]),
            "prediction": prediction,
        }
        return {name: image[0, 0].cpu().numpy() for name, image in images.items()}

    def groups(self, model: nn.Module) -> Mapping[str, Filter]:
        """Return the parameter groups; critics belong to a site's tasks, so "all" excludes them."""
        if isinstance(model, Translator) and isinstance(model.generator, Imported):
            critic = {"critic": name_starts("critics.")}
            return {**critic, **groups_from_outside(self.options, model.generator, "generator.")}
        return groups_of(model)

    def uses(self, site: str) -> Filter:
        """Return the filter of the generator and the critics of a site's tasks."""
        critics = self._critic_set.names(self._known.get(site, sum(self.pairs.values(), ())))
        uses = name_starts("generator.", *(f"critics.{name}." for name in critics))
        changes = self.options.changes
        return lambda name: uses(name) and changes(name.removeprefix("generator."))

    def viewed_by(self, site: str) -> Self:
        """Return the task with this site's code for every case."""
        return replace(self, coding=replace(self.coding, reader=site))

    @property
    def memory(self) -> Weights:
        """Return the images of the pool."""
        return self.pool.memory

    def with_memory(self, memory: Mapping[str, Tensor]) -> Self:
        """Return the task with a pool of the images of earlier rounds."""
        return replace(self, pool=ImagePool.of(self.options.image_pool, memory))

    @property
    def _known(self) -> Mapping[str, tuple[ContrastPair, ...]]:
        return {**self.pairs, **self.new_sites}

    def training_examples(self, cohorts: Sequence[Cohort]) -> Slices:
        """Return each training slice once; its task is drawn when it is used."""
        return self._examples(cohorts, "train", each=False)

    def evaluation_examples(self, cohorts: Sequence[Cohort], split: SplitName) -> Slices:
        """Return each slice of a split, once for each of its site's tasks that it can serve."""
        return self._examples(cohorts, split, each=True)

    def _examples(self, cohorts: Sequence[Cohort], split: SplitName, *, each: bool) -> Slices:
        visits = [list_visits(c, split, self._known[c.site], each=each) for c in cohorts]
        o = self.options
        mask = "" if o.masked == "none" else o.masked
        check_masks(cohorts, mask)
        augmentation = Augmentation(o.flip, o.intensity, o.crop)
        return Slices(list_slices(sum(visits, ())), self.coding, augmentation, mask)


def shape_of(options: Synthesis, coding: SiteTaskCode, norm: Norm) -> Shape:
    """Return the dimensions of the generator that a study chooses."""
    if options.generator in UNETS:
        return _unet(options, coding, norm)
    return GeneratorShape(
        code_size=coding.size,
        width=options.width,
        blocks=options.blocks,
        latent=options.latent,
        mapper_layers=options.mapper_layers,
        personalised=options.generator == "personalised",
        norm=norm,
        padding=options.padding,
        dropout=options.dropout,
        equalised=options.equalised,
        channel_weights=options.channel_weights,
        block_place=options.block_place or "branch",
    )


def _unet(options: Synthesis, coding: SiteTaskCode, norm: Norm) -> TranslationUNetShape:
    images = len(coding.contrasts) if options.generator == CONTRASTS else 1
    return TranslationUNetShape(
        inputs=images,
        outputs=images,
        width=options.unet_width,
        levels=options.unet_levels,
        code_size=coding.size if options.generator == CODED else 0,
        latent=options.latent,
        norm=norm,
    )
