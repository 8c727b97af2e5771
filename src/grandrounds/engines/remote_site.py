"""A site on another machine answers the coordinator, one request at a time, each once."""

import json
import logging
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import AbstractContextManager, ExitStack
from dataclasses import asdict, dataclass, field
from functools import partial
from secrets import token_hex
from threading import Lock
from typing import TypeAlias

from grandrounds.core.errors import BadInput, FailureCard, SiteFailed
from grandrounds.core.failures import Redactor, failure_card
from grandrounds.core.messages import Describe, Message, Reply, Request, decode, encode
from grandrounds.core.names import check_name
from grandrounds.engines.envelope import (
    READY,
    CorruptEnvelope,
    ForgedEnvelope,
    Identity,
    PeerEnvelope,
    ReplyEnvelope,
    ReplyState,
    RequestEnvelope,
    Stamp,
)
from grandrounds.engines.in_process import InProcessEngine
from grandrounds.site.audit import Audit, Entry, entry_of, unheard
from grandrounds.site.guard import Refused, StudyGuard
from grandrounds.site.site import Site

Host: TypeAlias = AbstractContextManager[tuple[InProcessEngine, bytes]]
SendToPeer: TypeAlias = Callable[[str, bytes], bytes]
_log = logging.getLogger(__name__)  # the site's log, where refusals keep their paths
_TRIES = 5  # to send an update to a peer
_PAUSE = 0.2  # seconds between them


@dataclass
class SiteAgent:
    """Answers the coordinator for one site, and receives its peers' updates.

    `host` opens the site, and returns what the coordinator should know before round 1;
    `send_to_peer` sends a packed envelope to another site and returns the packed answer, or raises
    `ConnectionError`. Only the `coordinator`, by its signature, may ask; `guard` makes what holds
    each request against the accepted study, and `audit` hears of each. A request that arrives again
    gets the stored answer.
    """

    host: Host
    send_to_peer: SendToPeer
    identity: Identity = field(default_factory=Identity)
    coordinator: str = ""
    guard: Callable[[Site], StudyGuard] | None = None
    audit: Audit = unheard
    _nonce: str = field(default_factory=partial(token_hex, 16), init=False)
    _guard: StudyGuard | None = field(default=None, init=False)
    _worker: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(1))
    _resources: ExitStack = field(default_factory=ExitStack)
    _lock: Lock = field(default_factory=Lock)
    _number: int = READY

    def __post_init__(self) -> None:
        self._answer: Future[ReplyEnvelope] = self._worker.submit(self._open)

    def answer(self, packed: bytes) -> bytes:
        """Answer a packed `RequestEnvelope` with a packed `ReplyEnvelope`, within its `wait`."""
        try:
            envelope, stamp = self.identity.unpack(packed, RequestEnvelope)
            session = self._session(envelope, stamp)
        except CorruptEnvelope:
            return self._said("damaged", self.coordinator)
        except ForgedEnvelope as forgery:
            self.audit(Entry("unknown", "ask", refused=str(forgery)))
            return self._said("refused", self.coordinator)
        return self.identity.pack(self._answer_to(envelope), self.coordinator, session)

    def _session(self, envelope: RequestEnvelope, stamp: Stamp) -> str:
        """Return the session of a request that the coordinator signed. Raises `ForgedEnvelope`."""
        if not self.identity.key:
            return ""
        if stamp.sender != self.coordinator:
            raise ForgedEnvelope(f"'{stamp.sender}' asked, who is not the coordinator")
        if envelope.number == READY:
            return f"{stamp.session.partition('.')[0]}.{self._nonce}"
        if not stamp.session.endswith(f".{self._nonce}"):
            raise ForgedEnvelope("a letter is of another session")
        return stamp.session

    def _said(self, state: ReplyState, to: str) -> bytes:
        """Return an answer to what was no request of this session."""
        return self.identity.pack(ReplyEnvelope(number=-1, state=state), to)

    def receive_update(self, packed: bytes) -> bytes:
        """Put the update of a packed `PeerEnvelope` into the mailbox, and acknowledge it."""
        try:
            envelope, stamp = self.identity.unpack(packed, PeerEnvelope)
        except CorruptEnvelope:
            return self._said("damaged", self.coordinator)
        except ForgedEnvelope as forgery:
            self.audit(Entry("unknown", "deliver", refused=str(forgery)))
            return self._said("refused", self.coordinator)
        try:
            update = _update_in(envelope)
            if self._guard:
                self._guard.check_peer(stamp.sender or update.site, update)
        except Refused as refusal:
            self.audit(Entry(stamp.sender, "deliver", refused=str(refusal)))
            return self._said("refused", stamp.sender)
        self._site.receive(update)
        self.audit(Entry(stamp.sender or update.site, "deliver", round=update.round))
        return self._said("done", stamp.sender)

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
        self._guard = self.guard(self._site) if self.guard else None
        return ReplyEnvelope(number=READY, state="done", body=description)

    def _do(self, envelope: RequestEnvelope) -> ReplyEnvelope:
        if envelope.number < self._number:  # it was abandoned while it was queued
            return ReplyEnvelope(number=envelope.number, state="stale")
        request: Request = Describe()
        try:
            request = _request_in(envelope)
            if self._guard:
                self._guard.check(request, envelope.deliver_to)
            reply = encode(self._reply(request, envelope.deliver_to))
        except Refused as refusal:
            self.audit(entry_of(self.coordinator, request, refused=str(refusal)))
            card = failure_card(self._site.name, request, refusal, str(refusal))
            return _failed(envelope, card)
        except SiteFailed as failure:
            self.audit(entry_of(self.coordinator, request, failed=failure.card.error))
            return _failed(envelope, failure.card)
        except BadInput as refusal:
            return ReplyEnvelope(
                number=envelope.number, state="refused", body=str(refusal).encode()
            )
        return ReplyEnvelope(number=envelope.number, state="done", body=reply)

    def _reply(self, request: Request, deliver_to: Sequence[str]) -> Reply:
        [reply] = self._engine.ask({self._site.name: request})
        if self._guard:
            self._guard.check_reply(request, reply)
        self.audit(entry_of(self.coordinator, request, left=reply, to=deliver_to))
        if not deliver_to:
            return reply
        peers = [name for name in deliver_to if name != self._site.name]
        self._deliver(request, reply, peers)
        if len(peers) < len(deliver_to):
            self._site.receive(reply)
        return reply.receipt(num_peers=len(peers))

    def _deliver(self, request: Request, reply: Reply, peers: Sequence[str]) -> None:
        """Send an update to the peers. Raises `SiteFailed` where one cannot be reached."""
        envelope = PeerEnvelope(body=encode(reply) if peers else b"")
        for peer in peers:
            try:
                self._send(self.identity.pack(envelope, peer), peer)
            except (ConnectionError, CorruptEnvelope, ForgedEnvelope) as error:
                text = f"its update did not reach '{peer}': {error}"
                raise SiteFailed(failure_card(self._site.name, request, error, text)) from error

    def _send(self, packed: bytes, peer: str) -> None:
        """Send an update to a peer; sending it twice does no harm. Raises `ConnectionError`."""
        for tries_left in reversed(range(_TRIES)):
            try:
                answer, _ = self.identity.unpack(self.send_to_peer(peer, packed), ReplyEnvelope)
                if answer.state == "done":
                    return
            except (ConnectionError, CorruptEnvelope, ForgedEnvelope):
                if not tries_left:
                    raise
            time.sleep(_PAUSE)
        raise ConnectionError(f"it came damaged {_TRIES} times")


def _failed(envelope: RequestEnvelope, card: FailureCard) -> ReplyEnvelope:
    body = json.dumps(asdict(card)).encode()
    return ReplyEnvelope(number=envelope.number, state="failed", body=body)


def _request_in(envelope: RequestEnvelope) -> Request:
    """Return the request in an envelope. Raises `Refused`."""
    for peer in envelope.deliver_to:
        check_name(peer, "peer", Refused)
    request = _decoded(envelope.body)
    if isinstance(request, Reply):
        raise Refused("what came is no request")
    return request


def _update_in(envelope: PeerEnvelope) -> Reply:
    """Return the update in an envelope. Raises `Refused`."""
    update = _decoded(envelope.body)
    if not isinstance(update, Reply):
        raise Refused("what was delivered is no update")
    return update


def _decoded(body: bytes) -> Message:
    try:
        return decode(body)
    except Exception as error:  # whatever it was made of, it is refused
        raise Refused(f"what came cannot be read ({type(error).__name__})") from error


def _refusal(sentence: str) -> ReplyEnvelope:
    """Return a refusal without paths; patients' names are unknown until the site is open."""
    return ReplyEnvelope(number=READY, state="refused", body=Redactor()(sentence).encode())
