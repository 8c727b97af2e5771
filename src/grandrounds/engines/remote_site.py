"""A site on another machine answers the coordinator, one request at a time, each once."""

import json
import logging
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import AbstractContextManager, ExitStack
from dataclasses import asdict, dataclass, field
from threading import Lock
from typing import TypeAlias, cast

from safetensors import SafetensorError

from grandrounds.core.errors import BadInput, BadSite, SiteFailed
from grandrounds.core.failures import Redactor, failure_card
from grandrounds.core.messages import Reply, Request, decode, encode
from grandrounds.core.names import check_name
from grandrounds.engines.envelope import (
    READY,
    CorruptEnvelope,
    PeerEnvelope,
    ReplyEnvelope,
    RequestEnvelope,
    pack,
    unpack,
)
from grandrounds.engines.in_process import InProcessEngine

Host: TypeAlias = AbstractContextManager[tuple[InProcessEngine, bytes]]
SendToPeer: TypeAlias = Callable[[str, bytes], bytes]
_log = logging.getLogger(__name__)  # the site's log, where refusals keep their paths
_TRIES = 5  # to send an update to a peer
_PAUSE = 0.2  # seconds between them
_UNREADABLE = (ValueError, KeyError, TypeError, SafetensorError)  # by bytes that no party encoded


@dataclass
class SiteAgent:
    """Answers the coordinator for one site, and receives its peers' updates.

    `host` opens the site, and returns what the coordinator should know before round 1;
    `send_to_peer` sends a packed envelope to another site and returns the packed answer, or raises
    `ConnectionError`. A request that arrives again gets the stored answer.
    """

    host: Host
    send_to_peer: SendToPeer
    _worker: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(1))
    _resources: ExitStack = field(default_factory=ExitStack)
    _lock: Lock = field(default_factory=Lock)
    _number: int = READY

    def __post_init__(self) -> None:
        self._answer: Future[ReplyEnvelope] = self._worker.submit(self._open)

    def answer(self, packed: bytes) -> bytes:
        """Answer a packed `RequestEnvelope` with a packed `ReplyEnvelope`, within its `wait`."""
        try:
            return pack(self._answer_to(unpack(packed, RequestEnvelope)))
        except CorruptEnvelope:
            return pack(ReplyEnvelope(number=-1, state="damaged"))

    def receive_update(self, packed: bytes) -> bytes:
        """Put the update of a packed `PeerEnvelope` into the mailbox, and acknowledge it."""
        try:
            update = cast(Reply, decode(unpack(packed, PeerEnvelope).body))
        except CorruptEnvelope:
            return pack(ReplyEnvelope(number=-1, state="damaged"))
        except _UNREADABLE as error:
            return pack(_refusal(f"what a peer sent is no update ({error})"))
        self._site.receive(update)
        return pack(ReplyEnvelope(number=-1, state="done"))

    def close(self) -> None:
        """Finish the requests that have begun, and close the site."""
        self._worker.submit(self._resources.close).result()
        self._worker.shutdown()

    def _answer_to(self, envelope: RequestEnvelope) -> ReplyEnvelope:
        answer = self._begin(envelope)
        if isinstance(answer, ReplyEnvelope):
            return answer
        done, _ = wait([answer], timeout=envelope.wait)
        return answer.result() if done else ReplyEnvelope(number=envelope.number, state="working")

    def _begin(self, envelope: RequestEnvelope) -> ReplyEnvelope | Future[ReplyEnvelope]:
        """Begin a new request; return the answer, present or to come, of one begun before."""
        with self._lock:
            if envelope.number < self._number:
                return ReplyEnvelope(number=envelope.number, state="stale")
            if envelope.number > self._number:
                if not envelope.body:
                    return ReplyEnvelope(number=envelope.number, state="unknown")
                self._number = envelope.number
                self._answer = self._worker.submit(self._do, envelope)
            return self._answer

    def _open(self) -> ReplyEnvelope:
        try:
            engine, description = self._resources.enter_context(self.host)
        except BadInput as refusal:
            _log.error("%s", refusal)
            return _refusal(str(refusal))
        except Exception as error:
            _log.exception("the site cannot open")
            return _refusal(f"the site cannot open: {type(error).__name__}: {error}")
        [self._site] = engine.sites
        self._engine = engine
        return ReplyEnvelope(number=READY, state="done", body=description)

    def _do(self, envelope: RequestEnvelope) -> ReplyEnvelope:
        if envelope.number < self._number:  # it was abandoned while it was queued
            return ReplyEnvelope(number=envelope.number, state="stale")
        try:
            reply = encode(self._reply(_request_in(envelope), envelope.deliver_to))
        except SiteFailed as failure:
            card = json.dumps(asdict(failure.card)).encode()
            return ReplyEnvelope(number=envelope.number, state="failed", body=card)
        except BadInput as refusal:
            return ReplyEnvelope(
                number=envelope.number, state="refused", body=str(refusal).encode()
            )
        return ReplyEnvelope(number=envelope.number, state="done", body=reply)

    def _reply(self, request: Request, deliver_to: Sequence[str]) -> Reply:
        [reply] = self._engine.ask({self._site.name: request})
        if not deliver_to:
            return reply
        peers = [name for name in deliver_to if name != self._site.name]
        self._deliver(request, reply, peers)
        if len(peers) < len(deliver_to):
            self._site.receive(reply)
        return reply.receipt(num_peers=len(peers))

    def _deliver(self, request: Request, reply: Reply, peers: Sequence[str]) -> None:
        """Send an update to the peers. Raises `SiteFailed` where one cannot be reached."""
        packed = pack(PeerEnvelope(body=encode(reply))) if peers else b""
        for peer in peers:
            try:
                self._send(packed, peer)
            except (ConnectionError, CorruptEnvelope) as error:
                text = f"its update did not reach '{peer}': {error}"
                raise SiteFailed(failure_card(self._site.name, request, error, text)) from error

    def _send(self, packed: bytes, peer: str) -> None:
        """Send an update to a peer; sending it twice does no harm. Raises `ConnectionError`."""
        for tries_left in reversed(range(_TRIES)):
            try:
                if unpack(self.send_to_peer(peer, packed), ReplyEnvelope).state == "done":
                    return
            except (ConnectionError, CorruptEnvelope):
                if not tries_left:
                    raise
            time.sleep(_PAUSE)
        raise ConnectionError(f"it came damaged {_TRIES} times")


def _request_in(envelope: RequestEnvelope) -> Request:
    """Return the request in an envelope. Raises `BadSite`."""
    for peer in envelope.deliver_to:
        check_name(peer, "peer", BadSite)
    try:
        return cast(Request, decode(envelope.body))
    except _UNREADABLE as error:
        raise BadSite(f"what came from the coordinator is no request ({error})") from None


def _refusal(sentence: str) -> ReplyEnvelope:
    """Return a refusal without paths; patients' names are unknown until the site is open."""
    return ReplyEnvelope(number=READY, state="refused", body=Redactor()(sentence).encode())
