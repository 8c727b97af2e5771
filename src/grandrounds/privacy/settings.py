"""A study says how much of a site's update leaves it, and how it is protected."""

from dataclasses import dataclass
from math import inf
from typing import Literal

from grandrounds.core.errors import require

_OF_NOISE = ("clip", "noise", "delta", "epsilon")


@dataclass(frozen=True)
class Privacy:
    """What protects an update before it leaves a site; what is not said is not in the study file.

    `kind`: no differential privacy, one whose unit is a whole site ("client"), or one whose unit is
    a training example ("record"). `clip` bounds the L2 norm of what is clipped, `noise` is the
    noise multiplier (the standard deviation divided by `clip`); `delta` is that of (epsilon,
    delta), and a run whose `epsilon` would exceed the limit does not start. With `secure_sum` only
    the sum of the sites' updates can be read; `on_dropout` says what becomes of a round in which a
    site falls silent: its masks are recovered, or the round is repeated without it.
    """

    kind: Literal["none", "client", "record"] = "none"
    clip: float | None = None
    noise: float | None = None
    delta: float | None = None
    epsilon: float | None = None
    secure_sum: bool | None = None
    on_dropout: Literal["recover", "repeat"] | None = None

    @property
    def is_noisy(self) -> bool:
        """Tell whether the study has differential privacy."""
        return self.kind != "none"

    def check(self) -> None:
        """Refuse numbers that are out of range, and options without effect. Raises `BadStudy`."""
        for name in _OF_NOISE:
            require(
                self.is_noisy or getattr(self, name) is None,
                f'privacy.{name} would do nothing: privacy.kind is "none"; set it to "client" or '
                '"record", or remove the option',
            )
        require(
            self.on_dropout is None or bool(self.secure_sum),
            "privacy.on_dropout would do nothing: it needs privacy.secure_sum = true",
        )
        if self.is_noisy:
            self._check_noise()

    def _check_noise(self) -> None:
        for name, word in {"clip": "above 0", "noise": "0 or more"}.items():
            require(
                getattr(self, name) is not None,
                f'privacy.{name} is missing; privacy.kind = "{self.kind}" needs it ({word})',
            )
        clip, noise, delta = self.clip or 0.0, self.noise or 0.0, self.delta
        require(0 < clip < inf, f"privacy.clip is {clip:g}; it must be above 0")
        require(0 <= noise < inf, f"privacy.noise is {noise:g}; it must be 0 or more")
        require(
            delta is None or 0 < delta < 1,
            f"privacy.delta is {delta or 0:g}; it must be above 0 and below 1, for example 1e-5",
        )
        epsilon = self.epsilon or 0.0
        require(
            0 <= epsilon < inf,
            f"privacy.epsilon is {epsilon:g}; it must be above 0, or 0 for no limit",
        )


@dataclass(frozen=True)
class Exchange:
    """In what form updates leave the sites; what comes back is always in full.

    `kind`: tensors as they are ("full"), rounded to 16 bits ("bf16") or to 8 with a scale for each
    tensor ("int8"), or of each tensor the share `fraction` of its numbers that moved most ("topk").
    What this takes from an update is owed, and added to the site's next one. With `deltas` a site
    sends how far it moved from the last aggregate; where that is not said, it does unless `kind` is
    "full".
    """

    kind: Literal["full", "bf16", "int8", "topk"] = "full"
    fraction: float | None = None
    deltas: bool | None = None

    @property
    def sends_moves(self) -> bool:
        """Tell whether sites send how far they moved, and not where they are."""
        return self.kind != "full" if self.deltas is None else self.deltas

    def check(self) -> None:
        """Refuse numbers that are out of range, and options without effect. Raises `BadStudy`."""
        require(
            self.fraction is None or self.kind == "topk",
            f'exchange.fraction would do nothing: exchange.kind is "{self.kind}", and it is for '
            '"topk"',
        )
        if self.kind != "topk":
            return
        require(
            self.fraction is not None,
            'exchange.fraction is missing; exchange.kind = "topk" needs it, for example 0.1',
        )
        fraction = self.fraction or 0.0
        require(
            0 < fraction <= 1,
            f"exchange.fraction is {fraction:g}; it must be above 0, up to 1 (all of it)",
        )
        require(
            self.deltas is not False,
            'exchange.deltas = false makes no sense with exchange.kind = "topk": a number that is '
            "not sent stays as in the last aggregate",
        )
