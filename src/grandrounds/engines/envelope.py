"""What crosses between the coordinator and a site elsewhere: numbered, sealed, never pickled."""

import json
from dataclasses import asdict, dataclass, replace
from hashlib import sha256
from typing import Literal, TypeAlias, TypeVar

from grandrounds.core.serialization import from_plain

ReplyState: TypeAlias = Literal[
    "done", "working", "unknown", "damaged", "stale", "failed", "refused"
]
READY = 0  # the number of the request that asks whether a site is ready
_SEAL = sha256().digest_size
_LENGTH = 4


class CorruptEnvelope(ValueError):  # noqa: N818 - the word that a failure card shows
    """A letter did not arrive as it was sent."""


@dataclass(frozen=True, kw_only=True)
class RequestEnvelope:
    """To a site: its request of this number, as bytes; without them, how far it has come.

    Number 0 asks whether the site is ready. The site waits up to `wait` seconds before it says that
    it is still working. With `deliver_to` the update goes to these sites, and a receipt returns.
    """

    number: int
    wait: float
    deliver_to: tuple[str, ...] = ()
    body: bytes = b""


@dataclass(frozen=True, kw_only=True)
class ReplyEnvelope:
    """From a site: what has become of the request of this number.

    `body` is the reply where it is done, else the failure card or refusal as JSON, or nothing.
    """

    number: int
    state: ReplyState
    body: bytes = b""


@dataclass(frozen=True, kw_only=True)
class PeerEnvelope:
    """From one site to another: an update for its mailbox."""

    body: bytes


Envelope: TypeAlias = RequestEnvelope | ReplyEnvelope | PeerEnvelope
EnvelopeKind = TypeVar("Kind", bound=Envelope)


def pack(letter: Envelope) -> bytes:
    """Pack a letter: SHA-256 of the rest, length of the header, header as JSON, body."""
    fields = asdict(replace(letter, body=b""))
    del fields["body"]
    header = json.dumps(fields).encode()
    parts = (len(header).to_bytes(_LENGTH, "little"), header, letter.body)
    found = sha256()
    for part in parts:
        found.update(part)
    return b"".join((found.digest(), *parts))


def unpack(data: bytes, kind: type[EnvelopeKind]) -> EnvelopeKind:
    """Unpack a letter. Raises `BadLetter` where it was truncated or changed on its way."""
    rest = memoryview(data)[_SEAL:]
    if sha256(rest).digest() != data[:_SEAL]:
        raise CorruptEnvelope(f"a letter of {len(data)} bytes came damaged")
    start = _LENGTH + int.from_bytes(rest[:_LENGTH], "little")
    header = json.loads(bytes(rest[_LENGTH:start]))
    return from_plain(kind, header | {"body": bytes(rest[start:])})
