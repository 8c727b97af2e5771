"""Harm that befalls the process of a site's job; only a test's own sitecustomize calls it."""

import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch

from grandrounds import training
from grandrounds.engines import attendant
from grandrounds.local_round import LocalRound
from grandrounds.messages import Reply, Request, encode
from grandrounds.training import Trained
from grandrounds.weights import Weights

FOR_EVER = 3600.0  # seconds


def hold(round: int, marker: str) -> None:
    """Stand still in a round's local training, and say so by a file."""

    def stand() -> None:
        Path(marker).touch()
        time.sleep(FOR_EVER)

    in_training(round, stand)


def slow(round: int, seconds: float) -> None:
    """Take longer for a round's local training."""
    in_training(round, lambda: time.sleep(seconds))


def poison(round: int) -> None:
    """Let the update of a round leave the site with a number that is none."""

    def poisoned(message: Request | Reply) -> bytes:
        if isinstance(message, Reply) and message.round == round and message.weights:
            name = sorted(message.weights)[0]
            bad = torch.full_like(message.weights[name], torch.nan)
            return encode(replace(message, weights=message.weights | {name: bad}))
        return encode(message)

    attendant.encode = poisoned


def in_training(round: int, happens: Callable[[], None]) -> None:
    """Let something happen in a round's local training, once, after the first optimiser step."""
    train, step = LocalRound.train, training.step

    def first_step(*arguments: object) -> None:
        step(*arguments)  # pyright: ignore[reportArgumentType]
        training.step = step
        happens()

    def disturbed(self: LocalRound) -> tuple[Trained, Weights, Weights]:
        if self.request.round == round:
            training.step = first_step
        return train(self)

    LocalRound.train = disturbed
