"""A party writes a line in its ledger before a message leaves: what it was, and for whom."""

import json
import os
import time
from base64 import b64encode
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from fcntl import LOCK_EX, flock
from hashlib import sha256
from pathlib import Path
from threading import Lock
from typing import BinaryIO, Protocol, TypeAlias

from grandrounds.core.errors import DiskFailed
from grandrounds.core.files import append_line, make_folder, make_private_folder, whole_lines
from grandrounds.core.ledger import (
    DELIVER,
    FIRST,
    LISTING,
    SESSION,
    TURN_STEPS,
    LedgerEntry,
    LedgerHead,
    end_of_line,
    line_content,
    signed_statement,
)
from grandrounds.core.messages import Reply, Request, Train, message_digest
from grandrounds.core.site_statistics import statistics_bytes
from grandrounds.core.weights import Weights, digest, num_bytes

REFUSALS = 1000  # refused letters that are written down, for each process
LONGEST_WORD = 200  # characters of a word in a line
TRAINED = Train.__name__.lower()  # what is asked for an update that guards touch
_NAMED = ("split", "cases", "epochs", "steps", "step", "after", "tuned", "since", "leader", "last")

Recorder: TypeAlias = Callable[[LedgerEntry], LedgerHead | None]


def unrecorded(entry: LedgerEntry) -> None:
    """Write nothing down."""


class LedgerKey(Protocol):
    """A party's key: what signs for it, and the certificate (PEM) that lets others verify that."""

    @property
    def certificate(self) -> str: ...
    @property
    def sign(self) -> Callable[[bytes], bytes]: ...


def ledger_entry(
    who: str,
    request: Request,
    *,
    left: Reply | None = None,
    to: Sequence[str] = (),
    receipt: Reply | None = None,
    refused: str = "",
    failed: str = "",
) -> LedgerEntry:
    """Return what a line tells of a request, and of what left the site in answer to it.

    Where the tensors went `to` peers, `receipt` is what who asked got instead of them.
    """
    found = {name: str(getattr(request, name)) for name in _NAMED if getattr(request, name, None)}
    entry = LedgerEntry(
        who=who,
        asked=type(request).__name__.lower(),
        round=request.round,
        what={name: value[:LONGEST_WORD] for name, value in found.items()},
        refused=refused,
        failed=failed,
    )
    if left is None:
        return entry
    told = statistics_bytes(left.statistics) if left.statistics else b""
    sent = left.weights
    fingerprint = digest(sent) if sent else ""
    return replace(
        entry,
        tensors=len(sent),
        bytes=num_bytes(sent) + len(told),
        digest=fingerprint or (sha256(told).hexdigest() if told else ""),
        scores=len(left.scores),
        metrics=tuple(left.metrics),
        to=tuple(to) if sent else (),
        named=names_and_shapes(sent),
        message=message_digest(receipt or left, "" if receipt else fingerprint),
        epsilon=left.epsilon,
    )


def received_entry(sender: str, request: Request, reply: Reply) -> LedgerEntry:
    """Return what the coordinator's line tells of a reply, and where its sender's ledger stood.

    The digest of the message is the one that came with it and was held against it; where no
    ledger came along it is computed.
    """
    head, sent = reply.ledger, reply.weights
    return replace(
        ledger_entry(sender, request),
        tensors=len(sent),
        bytes=num_bytes(sent),
        scores=len(reply.scores),
        metrics=tuple(reply.metrics),
        named=names_and_shapes(sent),
        message=head.message if head else message_digest(reply, digest(sent) if sent else ""),
        epsilon=reply.epsilon,
        head=head,
    )


def delivered_entry(sender: str, update: Reply) -> LedgerEntry:
    """Return what a line tells of an update that a peer delivered."""
    return LedgerEntry(
        sender,
        DELIVER,
        round=update.round,
        tensors=len(update.weights),
        bytes=num_bytes(update.weights),
        digest=digest(update.weights),
        named=names_and_shapes(update.weights),
        head=update.ledger,
    )


def names_and_shapes(weights: Weights) -> dict[str, str]:
    """Map the name of each tensor to its type and shape, such as "float32 [64, 3]"."""
    return {name: f"{str(t.dtype)[6:]} {list(t.shape)}" for name, t in weights.items()}


@dataclass
class Ledger:
    """The ledger of one run at one party, a JSON object a line; it only grows.

    A site's is `private`: its owner alone can read it. With a `key` every line of a message is
    signed, but for the steps within a turn at a network that is cut, which the next signed line
    covers; and such a line is on the disk before the message leaves. Each process begins with a
    line that says so (`about` it), and how much of an unfinished line it cut off before. The names
    of tensors are written once, as a listing that other lines name. At most `REFUSALS` refused
    letters are written down, and each delivery of a peer once, so that nobody fills the disk.
    `guards` are those of the study, which touched every update of a round.
    """

    path: Path
    party: str = ""
    study: str = ""
    key: LedgerKey | None = None
    private: bool = True
    guards: tuple[str, ...] = ()
    about: dict[str, str] = field(default_factory=dict[str, str])
    _number: int = field(default=0, init=False)
    _before: str = field(default=FIRST, init=False)
    _size: int = field(default=-1, init=False)
    _listed: set[str] = field(default_factory=set[str], init=False)
    _refusals: int = field(default=0, init=False)
    _deliveries: set[tuple[str, int]] = field(default_factory=set[tuple[str, int]], init=False)
    _lock: Lock = field(default_factory=Lock, init=False)

    def __call__(self, entry: LedgerEntry) -> LedgerHead | None:
        """Write the line of an entry, before what it tells of leaves. Raises `DiskFailed`.

        Returns where the ledger stands; None of what is not written down.
        """
        with self._lock:
            if self._is_repeated(entry):
                return None
            try:
                with self._opened() as file:
                    self._go_on(file)
                    return self._write(self._with_listing(entry))
            except OSError as error:
                raise DiskFailed(f"{self.path}: the ledger cannot be written: {error}") from error

    @contextmanager
    def _opened(self) -> Generator[BinaryIO, None, None]:
        """Hold the file, so that no other process writes meanwhile."""
        if self._size < 0:
            (make_private_folder if self.private else make_folder)(self.path.parent)
            mode = 0o600 if self.private else 0o666
            os.close(os.open(self.path, os.O_CREAT | os.O_WRONLY, mode))
            if self.private:
                self.path.chmod(mode)
        with self.path.open("rb") as file:
            flock(file, LOCK_EX)
            yield file

    def _go_on(self, file: BinaryIO) -> None:
        """Go on after the last whole line of a file that another process has written to."""
        size = os.fstat(file.fileno()).st_size
        if size == self._size:
            return
        begins, raw = self._size < 0, file.read()
        whole = whole_lines(raw)
        lines = whole.split(b"\n")[:-1]
        self._number = len(lines)
        self._before = sha256(lines[-1]).hexdigest() if lines else FIRST
        self._listed = {_listing_in(line) for line in lines if b'"asked": "listing"' in line}
        self._size = len(whole)
        if begins or len(whole) < size:
            cut = {"cut": f"{size - len(whole)} bytes"} if len(whole) < size else {}
            certificate = self.key.certificate if self.key else ""
            self._write(
                LedgerEntry(self.party, SESSION, what=self.about | cut, certificate=certificate)
            )

    def _with_listing(self, entry: LedgerEntry) -> LedgerEntry:
        """Write the names of an entry's tensors, unless they stand in the ledger already."""
        if not entry.named:
            return entry
        listing = sha256(json.dumps(dict(entry.named)).encode()).hexdigest()
        if listing not in self._listed:
            self._write(LedgerEntry(self.party, LISTING, listing=listing, named=entry.named))
            self._listed.add(listing)
        guards = self.guards if entry.asked == TRAINED and entry.message else ()
        return replace(entry, named={}, listing=listing, guards=guards)

    def _write(self, entry: LedgerEntry) -> LedgerHead:
        number, moment = self._number + 1, time.time()
        content = line_content(number, moment, self._before, replace(entry, study=self.study))
        total = sha256(content).hexdigest()
        signs = bool(self.key and entry.message) and entry.asked not in TURN_STEPS
        signature = self._signature(total) if signs else ""
        line = content + end_of_line(total, signature)
        append_line(self.path, line, flush=signs)
        self._number, self._before = number, sha256(line).hexdigest()
        self._size += len(line) + 1
        return LedgerHead(number, total, entry.message, signature)

    def _signature(self, total: str) -> str:
        assert self.key is not None, "only who has a key signs"
        return b64encode(self.key.sign(signed_statement(total))).decode()

    def _is_repeated(self, entry: LedgerEntry) -> bool:
        if entry.refused:
            self._refusals += 1
            return self._refusals > REFUSALS
        if entry.asked != DELIVER:
            return False
        delivery = (entry.who, entry.round)
        known = delivery in self._deliveries
        self._deliveries.add(delivery)
        return known


def _listing_in(line: bytes) -> str:
    """Return the digest of a listing; empty where a line that was damaged has none."""
    try:
        return str(json.loads(line)["listing"])
    except (ValueError, KeyError, TypeError):
        return ""
