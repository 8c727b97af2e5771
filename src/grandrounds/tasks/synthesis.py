"""Contrast synthesis as a study asks for it: which network, which losses, which images."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

from grandrounds.data.elements import Elements
from grandrounds.tasks.checks import check_counts, check_shares, check_size, require
from grandrounds.tasks.coding import Coding, Pair, check_pair
from grandrounds.tasks.networks import CODED
from grandrounds.tasks.synthesis_task import SynthesisTask
from grandrounds.tasks.task import NO_GUESTS, Labels

SMALL = {
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
class Synthesis:
    """Options of the synthesis task; `model` = "small" changes the defaults to a network for CPUs.

    `generator` "auto" is the method's own: "personalised" for pflsynth, a U-Net for some, "plain"
    (the ResNet) for the others; `norm` "auto" is "batch" where a method is about batch norms.
    `channel_weights` = false takes them out of the personalisation blocks. `critics` is one per
    task or a single one; `adversarial` and `l1` weigh the generator's loss. `pairing` = "unpaired"
    trains without pairs of images, by `cycle` and `identity` losses; a pool of `image_pool` older
    images then stands in for half of the new ones that a critic is shown. `critic_clip` above 0
    clips each image's gradient from its critic, and `critic_noise` adds noise to it (FedMed-GAN).
    `masked` = "brain" scores inside the brain mask, too.
    `equalised` and `dropout_at_evaluation` are how the released pFLSynth code differs (`parity`).
    """

    metric: ClassVar[str] = "psnr"
    sizes: ClassVar[Mapping[str, Mapping[str, object]]] = {"small": SMALL}

    kind: Literal["synthesis"] = "synthesis"
    model: Literal["full", "small"] = "full"
    generator: Literal["auto", "personalised", "plain", "unet", "contrasts-unet", "coded-unet"] = (
        "auto"
    )
    codes: Literal["both", "site", "task", "none"] = "both"
    width: int = 64
    blocks: int = 9
    latent: int = 512
    mapper_layers: int = 6
    mapper_rate: float = 1.0
    channel_weights: bool = True
    unet_width: int = 32
    unet_levels: int = 4
    norm: Literal["auto", "instance", "batch"] = "auto"
    padding: Literal["reflect", "zero"] = "reflect"
    dropout: float = 0.5
    equalised: bool = False
    dropout_at_evaluation: bool = False
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
    crop: Literal["none", "resize-crop"] = "none"
    masked: Literal["none", "brain"] = "none"

    @property
    def has_statistics(self) -> bool:
        """Batch norm keeps running statistics, instance norm does not."""
        return self.norm == "batch"

    def check(self, elements: Elements, sites: Mapping[str, Sequence[str]]) -> None:
        """Refuse what no generator can be made of. Raises `BadStudy`."""
        check_counts(self, LEAST)
        check_shares(self, ("dropout", "flip"))
        for name in WEIGHTS:
            require(getattr(self, name) >= 0, f"task.{name} must be 0 or more")
        require(len(elements.contrasts) >= 2, "elements.contrasts must name two contrasts or more")
        multiple = 2**self.unet_levels if self.generator.endswith("unet") else 4
        check_size(elements, least=32, multiple=multiple)
        for site, labels in sites.items():
            for label in labels:
                check_pair(site, label, elements)
        self._check_network({Pair.parse(label) for labels in sites.values() for label in labels})

    def _check_network(self, pairs: set[Pair]) -> None:
        """Refuse options that do not go together, or that would do nothing."""
        require(
            self.channel_weights or self.generator == "personalised",
            "task.channel_weights = false would do nothing: only the personalised generator has "
            "channel weights",
        )
        require(
            self.masked == "none" or self.crop == "none",
            'task.masked = "brain" and task.crop = "resize-crop" exclude each other: a mask would '
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

    def bind(self, elements: Elements, sites: Labels, guests: Labels = NO_GUESTS) -> SynthesisTask:
        """Make a consortium's task; `sites` maps each, in roster order, to its task labels.

        The site code of a guest is the mean of all sites' codes.
        """
        pairs = _parsed(sites)
        unpaired = self.pairing == "unpaired"
        codes = "direction" if unpaired or self.generator == CODED else self.codes
        distinct = dict.fromkeys(pair for own in pairs.values() for pair in own)
        if unpaired:
            distinct |= dict.fromkeys(pair.reversed for pair in distinct)
        coding = Coding(tuple(sites), elements.contrasts, codes, tuple(distinct))
        return SynthesisTask(self, coding, pairs, _parsed(guests))


def _parsed(sites: Labels) -> dict[str, tuple[Pair, ...]]:
    return {site: tuple(Pair.parse(label) for label in labels) for site, labels in sites.items()}
