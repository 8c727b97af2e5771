"""Harm that befalls the process of a job; only a test's own sitecustomize calls it."""

import os
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from threading import Event
from typing import Any

import torch
from torch import Tensor

from grandrounds.core import state as checkpoints
from grandrounds.core.messages import Reply, Request, decode, encode
from grandrounds.engines import remote_site as attendant
from grandrounds.engines.envelope import READY, ReplyEnvelope, unpack
from grandrounds.site import training
from grandrounds.site.local_round import SiteRound

FOR_EVER = 3600.0  # seconds


def hold(round: int, marker: str) -> None:
    """Stand still in a round's local training, and say so by a file."""
    in_training(round, lambda: stand(marker))


def hold_sending(round: int, marker: str) -> None:
    """Stand still when the first part of a round's large update is sent, and say so by a file."""
    from grandrounds.flare.transport import Transport

    hand_out, begun = Transport._hand_out, Event()

    def part(self: Transport, request: Any) -> Any:
        if begun.is_set() and request["start"]:
            stand(marker)
        return hand_out(self, request)

    Transport._hand_out = part
    in_training(round, begun.set)


def hold_saving(round: int, marker: str) -> None:
    """Stand still when a round's file is written but has not got its name, and say so by a file."""
    save = checkpoints.RoundStore.save

    def saved(self: checkpoints.RoundStore, number: int, *others: Any) -> None:
        if number == round:
            os.fsync = lambda _: stand(marker)
        save(self, number, *others)

    checkpoints.RoundStore.save = saved  # pyright: ignore[reportAttributeAccessIssue]


def stand(marker: str) -> None:
    """Stand still until someone kills this process."""
    Path(marker).touch()
    time.sleep(FOR_EVER)


def garble(round: int, marker: str) -> None:
    """Cut the first answer of a round in half, and send an older one in place of the second."""
    answer, older = attendant.SiteAgent.answer, list[bytes]()
    harms = {"cut": lambda packed: packed[: len(packed) // 2], "replayed": lambda _: older[-1]}

    def garbled(self: attendant.SiteAgent, packed: bytes) -> bytes:
        found = answer(self, packed)
        said = unpack(found, ReplyEnvelope)
        if said.state != "done" or said.number == READY:
            return found
        if decode(said.body).round != round:
            older.append(found)
        elif harms:
            with Path(marker).open("a") as file:
                file.write(f"{next(iter(harms))}\n")
            return harms.pop(next(iter(harms)))(found)
        return found

    attendant.SiteAgent.answer = garbled


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
    batches, step = SiteRound.batches, training.step

    def first_step(*arguments: object) -> None:
        step(*arguments)  # pyright: ignore[reportArgumentType]
        training.step = step
        happens()

    def disturbed(self: SiteRound, *, epochs: int = 0) -> Iterator[dict[str, Tensor]]:
        if self.round == round:
            training.step = first_step
        return batches(self, epochs=epochs)

    SiteRound.batches = disturbed
