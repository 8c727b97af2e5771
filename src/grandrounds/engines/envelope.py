"""Messages between a coordinator and remote sites are numbered, checksummed, never pickled."""

import json
from dataclasses import asdict, dataclass, replace
from hashlib import sha256
from typing import Literal, TypeAlias, TypeVar

from grandrounds.core.serialization import from_plain

ReplyState: TypeAlias = Literal[
    "done", "working", "unknown", "damaged", "stale", "failed", "refused"
]
READY = 0  # the number of the request that asks whether a site is ready
_CHECKSUM = sha256().digest_size
_LENGTH = 4


class CorruptEnvelope(ValueError):  # noqa: N818 - the word that a failure card shows
    """An envelope did not arrive as it was sent."""


@dataclass(frozen=True, kw_only=True)
class RequestEnvelope:
    """To a site: its request of this number, as bytes; without a body, asks for the answer alone.

    Number 0 asks whether the site is ready. The site waits up to `wait` seconds before it replies
    that it is still working. With `deliver_to` the update goes to these sites, and a receipt
    returns.
    """

    number: int
    wait: float
    deliver_to: tuple[str, ...] = ()
    body: bytes = b""


@dataclass(frozen=True, kw_only=True)
class ReplyEnvelope:
    """From a site: the state of the request of this number.

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
EnvelopeKind = TypeVar("EnvelopeKind", bound=Envelope)


def pack(envelope: Envelope) -> bytes:
    """Return an envelope as bytes: SHA-256 of the rest, header length, header as JSON, body."""
    fields = asdict(replace(envelope, body=b""))
    del fields["body"]
    header = json.dumps(fields).encode()
    parts = (len(header).to_bytes(_LENGTH, "little"), header, envelope.body)
    checksum = sha256()
    for part in parts:
        checksum.update(part)
    return b"".join((checksum.digest(), *parts))


def unpack(data: bytes, kind: type[EnvelopeKind]) -> EnvelopeKind:
    """Return the envelope in these bytes. Raises `CorruptEnvelope` where they were changed."""
    rest = memoryview(data)[_CHECKSUM:]
    if sha256(rest).digest() != data[:_CHECKSUM]:
        raise CorruptEnvelope(f"a letter of {len(data)} bytes came damaged")
    start = _LENGTH + int.from_bytes(rest[:_LENGTH], "little")
    header = json.loads(bytes(rest[_LENGTH:start]))
    return from_plain(kind, header | {"body": bytes(rest[start:])})
