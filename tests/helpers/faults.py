"""Harm that befalls the process of a job; only a test's own sitecustomize calls it."""

import json
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
from grandrounds.core.messages import Reply, Request, Train, decode, encode
from grandrounds.engines import remote_site as attendant
from grandrounds.engines.envelope import (
    READY,
    PeerEnvelope,
    ReplyEnvelope,
    RequestEnvelope,
    pack,
    unpack,
)
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


def hold_finished(marker: str) -> None:
    """Stand still when a run is finished and its job is not, and say so by a file."""
    from grandrounds.flare import controller

    run = controller.run_remotely

    def finished(*arguments: Any, **options: Any) -> None:
        run(*arguments, **options)
        stand(marker)

    controller.run_remotely = finished


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


def attack(round: int, peer: str, report: str) -> None:
    """Ask another site, in the middle of a round, for what it would give the coordinator alone."""
    from grandrounds.flare.transport import ASK, MAIL, Transport

    transports, agents, heard = list[Transport](), list[attendant.SiteAgent](), list[bytes]()
    begin, answer = Transport.__init__, attendant.SiteAgent.answer

    def begun(self: Transport, *arguments: Any, **options: Any) -> None:
        transports.append(self)
        begin(self, *arguments, **options)

    def noted(self: attendant.SiteAgent, packed: bytes) -> bytes:
        agents.append(self)
        heard.append(packed)
        return answer(self, packed)

    def attacks() -> None:
        transport, identity = transports[-1], agents[-1].identity
        order = encode(Train(round=round, since=round - 1))
        asked = RequestEnvelope(number=99, wait=1.0, deliver_to=("birch",), body=order)
        posing = replace(identity, name=agents[-1].coordinator)
        update = encode(Reply(site=identity.name, round=round, merged=2))
        letters = {
            "unsigned": (ASK, pack(asked)),
            "signed as oneself": (ASK, identity.pack(asked, peer, "a.b")),
            "signed as the coordinator": (ASK, posing.pack(asked, peer, "a.b")),
            "the coordinator's own letter": (ASK, heard[-1]),
            "an opening": (ASK, identity.pack(RequestEnvelope(number=READY, wait=1.0), peer, "a")),
            "an update": (MAIL, identity.pack(PeerEnvelope(body=update), peer)),
            "noise": (ASK, b"noise" * 99),
        }
        answers = {
            name: unpack(transport.send(topic, peer, letter, 10.0), ReplyEnvelope)
            for name, (topic, letter) in letters.items()
        }
        told = {name: [answer.state, len(answer.body)] for name, answer in answers.items()}
        Path(report).write_text(json.dumps(told))

    Transport.__init__ = begun  # pyright: ignore[reportAttributeAccessIssue]
    attendant.SiteAgent.answer = noted
    in_training(round, attacks)


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
