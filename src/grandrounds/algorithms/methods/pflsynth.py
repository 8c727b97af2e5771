"""pFLSynth."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

from grandrounds.algorithms.aggregation import Rate
from grandrounds.algorithms.method import Method
from grandrounds.algorithms.sharing import Sharing
from grandrounds.core.errors import require

PARAMETER_SPLITS: Mapping[str, tuple[str, ...]] = {
    "decoder": ("mapper", "decoder"),
    "paper": ("mapper", "bottleneck_late", "decoder"),
    "bottleneck": ("mapper", "bottleneck_early", "bottleneck_late", "decoder"),
    "wide": ("all",),
    "everything": ("all",),
}
TRAVELS: Mapping[str, str] = {
    "decoder": "mapper and decoder travel, the rest stays",
    "paper": "mapper and later layers travel, the rest stays",
    "bottleneck": "all but the encoder and the personalisation blocks travels",
    "wide": "all but the personalisation blocks travels",
    "everything": "the whole generator travels",
}


@dataclass(frozen=True)
class PFLSynth(Method):
    """Dalmaz et al. 2024: personalised synthesis; what its split names travels, the rest stays.

    `paper` shares mapper, late bottleneck and decoder; `decoder` less than that, `bottleneck` all
    of it too; `wide` shares all but the personalisation blocks, which suits sites with few
    patients, and `everything` these too; `share` names the parameter groups instead.

    site      as FedAvg
    server    w <- w + rate_g sum_k n_k / n (w_k - w), of what is shared; rate_g is measured for
              each group of parameters (FedExP) where sites are averaged, and 1 elsewhere
    """

    server_rate: ClassVar[Rate] = "measured"

    split: Literal["decoder", "paper", "bottleneck", "wide", "everything"] = "paper"
    share: tuple[str, ...] = ()

    @property
    def title(self) -> str:
        return "pFLSynth"

    @property
    def description(self) -> str:
        said = f"{', '.join(self.share)}: only this travels" if self.share else TRAVELS[self.split]
        return f"Dalmaz et al. 2024: personalised synthesis; {said}."

    def sharing(self) -> Sharing:
        private = () if self.share or self.split == "everything" else ("personal",)
        return Sharing(self.share or PARAMETER_SPLITS[self.split], private)

    def prefers(self) -> Mapping[str, str]:
        return {"generator": "personalised"}

    def check_task(self, task: object) -> None:
        require(
            getattr(task, "generator", "") == "personalised",
            'method "pflsynth" needs task.generator = "personalised"; without personalisation '
            "blocks and mapper its split has nothing to personalise",
        )
