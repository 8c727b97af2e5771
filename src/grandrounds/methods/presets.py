"""The methods by name: a preset is a function whose signature is its part of the study file."""

from collections.abc import Callable
from typing import Literal

from grandrounds.methods.method import Method


def fedavg() -> Method:
    """McMahan et al. 2017: every site trains all of the network, the server averages all of it."""
    return Method("FedAvg", shared=("all",))


def fedbn() -> Method:
    """Li et al. 2021: FedAvg, but batch-norm parameters and statistics stay at the site."""
    return Method("FedBN", shared=("all",), private=("norm",))


def pflsynth(*, split: Literal["paper", "wide"] = "paper", share: tuple[str, ...] = ()) -> Method:
    """Dalmaz et al. 2024: personalised synthesis; mapper and later layers travel, the rest stays.

    `paper` shares mapper, late bottleneck and decoder; `wide` shares all but the personalisation
    blocks, which suits sites with few patients; `share` names the parameter groups instead.
    """
    splits = {"paper": ("mapper", "bottleneck_late", "decoder"), "wide": ("all",)}
    return Method("pFLSynth", shared=share or splits[split], private=() if share else ("personal",))


def local() -> Method:
    """No federation: every site trains alone, from the same first weights."""
    return Method("Local only")


def central() -> Method:
    """No federation: one model on all sites' pooled data, which a consortium could not have."""
    return Method("Centralised", pooled=True)


METHODS: dict[str, Callable[..., Method]] = {
    "fedavg": fedavg,
    "fedbn": fedbn,
    "pflsynth": pflsynth,
    "local": local,
    "central": central,
}
