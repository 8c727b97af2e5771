"""Messages between a coordinator and remote sites are numbered, signed, and never pickled."""

import json
from base64 import b64decode, b64encode
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from hashlib import sha256
from typing import Literal, TypeAlias, TypeVar

from grandrounds.core.errors import WrongSignature
from grandrounds.core.serialization import from_plain

ReplyState: TypeAlias = Literal[
    "done", "working", "unknown", "damaged", "stale", "failed", "refused"
]
READY = 0  # the number of the request that asks whether a site is ready
_CHECKSUM = sha256().digest_size
_LENGTH = 4


class ForgedEnvelope(ValueError):  # noqa: N818 - the word that an audit log shows
    """An envelope is not signed by whom it says, or not for this party, run and session."""


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


def pack(envelope: Envelope, seal: Callable[[bytes], bytes] | None = None) -> bytes:
    """Return an envelope as bytes: checksum, seal, header as JSON, body.

    `seal` returns the seal of the SHA-256 of header and body. The checksum is the SHA-256 of both
    together: what is changed on the way is damaged, what was never sealed rightly is forged.
    """
    fields = asdict(replace(envelope, body=b""))
    del fields["body"]
    header = json.dumps(fields).encode()
    parts = (len(header).to_bytes(_LENGTH, "little"), header, envelope.body)
    content = sha256()
    for part in parts:
        content.update(part)
    sealed = seal(content.digest()) if seal else b""
    front = len(sealed).to_bytes(_LENGTH, "little") + sealed
    return b"".join((sha256(front + content.digest()).digest(), front, *parts))


def unpack(data: bytes, kind: type[EnvelopeKind]) -> EnvelopeKind:
    """Return the envelope in these bytes. Raises `CorruptEnvelope` where they were changed."""
    return _open(data, kind)[0]


def _open(data: bytes, kind: type[EnvelopeKind]) -> tuple[EnvelopeKind, bytes, bytes]:
    """Return an envelope, its seal, and the SHA-256 that the seal is of."""
    rest = memoryview(data)[_CHECKSUM:]
    start = _LENGTH + int.from_bytes(rest[:_LENGTH], "little")
    front, content = bytes(rest[:start]), rest[start:]
    digest = sha256(content).digest()
    if sha256(front + digest).digest() != data[:_CHECKSUM]:
        raise CorruptEnvelope(f"a letter of {len(data)} bytes came damaged")
    end = _LENGTH + int.from_bytes(content[:_LENGTH], "little")
    try:
        header = json.loads(bytes(content[_LENGTH:end]))
        envelope = from_plain(kind, header | {"body": bytes(content[end:])})
    except (ValueError, KeyError, TypeError, RecursionError):
        raise CorruptEnvelope(f"a letter of {len(data)} bytes cannot be read") from None
    return envelope, front[_LENGTH:], digest


@dataclass(frozen=True)
class Seal:
    """Whom an envelope is from and for, and in which session of which run of which study."""

    sender: str
    to: str
    run: str
    session: str

    def statement(self, digest: bytes) -> bytes:
        """Return what is signed: the stamp, and the SHA-256 of header and body."""
        return b"grandrounds envelope " + json.dumps(asdict(self)).encode() + b" " + digest


@dataclass(frozen=True)
class SealingKey:
    """A party's key: `sign` signs a statement; `certificate` (PEM) lets others verify it.

    `verify` returns the name in a certificate of this federation whose key signed a statement, and
    raises `WrongSignature` or another `ValueError` for anything else.
    """

    certificate: str
    sign: Callable[[bytes], bytes]
    verify: Callable[[str, bytes, bytes], str]


@dataclass(frozen=True)
class Identity:
    """Who packs and opens envelopes here, about which run; in a federation, with a key.

    Without a key (in NVFlare's simulator, on one machine) names are taken as they are said.
    """

    name: str = ""
    run: str = ""
    key: SealingKey | None = None

    def pack(self, envelope: Envelope, to: str, session: str = "") -> bytes:
        """Return a sealed envelope for one party."""
        key = self.key
        if key is None:
            return pack(envelope)
        stamp = Seal(self.name, to, self.run, session)

        def seal(digest: bytes) -> bytes:
            signature = b64encode(key.sign(stamp.statement(digest))).decode()
            words = {"certificate": key.certificate, "signature": signature}
            return json.dumps({**asdict(stamp), **words}).encode()

        return pack(envelope, seal)

    def unpack(self, data: bytes, kind: type[EnvelopeKind]) -> tuple[EnvelopeKind, Seal]:
        """Return an envelope and its stamp, whose sender has signed it for this party and run.

        Raises `CorruptEnvelope`, and `ForgedEnvelope` where somebody else made it.
        """
        envelope, seal, digest = _open(data, kind)
        if self.key is None:
            return envelope, Seal("", self.name, self.run, "")
        stamp = self._verified(self.key, seal, digest)
        if (stamp.to, stamp.run) != (self.name, self.run):
            raise ForgedEnvelope("a letter is for another party or run")
        return envelope, stamp

    def _verified(self, key: SealingKey, seal: bytes, digest: bytes) -> Seal:
        try:
            words = json.loads(seal)
            certificate, signature = (
                str(words.pop("certificate")),
                b64decode(words.pop("signature")),
            )
            stamp = from_plain(Seal, words)
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            raise ForgedEnvelope("a letter is not signed by a party of this federation") from None
        try:
            signer = key.verify(certificate, signature, stamp.statement(digest))
        except ValueError as error:
            words = "a letter is not signed by a party of this federation"
            why = f": {error}" if isinstance(error, WrongSignature) else ""
            raise ForgedEnvelope(f"{words}{why}") from None
        if signer != stamp.sender:
            raise ForgedEnvelope("a letter is signed by another party than it says")
        return stamp
