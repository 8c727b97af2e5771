"""A site on another machine answers the coordinator, one request at a time, each once."""

import json
import re
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import AbstractContextManager, ExitStack
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from hashlib import sha256
from secrets import token_hex
from threading import Event as ThreadEvent
from threading import Lock
from typing import Any, Protocol, TypeAlias

from grandrounds.core.errors import (
    BadInput,
    DiskFailed,
    FailureCard,
    RunFailed,
    SiteFailed,
    WrongSignature,
)
from grandrounds.core.failures import Disclosure, failure_card, log_failure
from grandrounds.core.ledger import DELIVER, OPEN, LedgerEntry
from grandrounds.core.messages import Describe, Message, Reply, Request, decode, encode
from grandrounds.core.names import check_name
from grandrounds.core.sentence import Name, phrase
from grandrounds.engines.envelope import (
    READY,
    CorruptEnvelope,
    ForgedEnvelope,
    Identity,
    PeerEnvelope,
    ReplyEnvelope,
    ReplyState,
    RequestEnvelope,
    Seal,
)
from grandrounds.site.guard import Refused, RequestGuard
from grandrounds.site.ledger import Recorder, delivered_entry, ledger_entry, unrecorded


class HostedSite(Protocol):
    """What of a site its agent needs; `InProcessEngine` has such ones."""

    @property
    def name(self) -> str: ...
    @property
    def disclosure(self) -> Disclosure: ...
    @property
    def tells_all(self) -> bool: ...
    def receive(self, update: Reply) -> None:
        """Take a peer's update."""
        ...


class HostEngine(Protocol):
    """An engine of the one site that an agent answers for."""

    @property
    def sites(self) -> Sequence[HostedSite]: ...
    def ask(self, requests: Mapping[str, Request]) -> list[Reply]:
        """Let the site answer."""
        ...


Host: TypeAlias = AbstractContextManager[tuple[HostEngine, bytes]]
SendToPeer: TypeAlias = Callable[[str, bytes], bytes]
_TRIES = 5  # to send an update to a peer
_PAUSE = 0.2  # seconds between them
_SPLITS = {"train", "validation", "test"}
_DIGEST = re.compile("[0-9a-f]*")
_PATIENT, _CASE = re.compile("p[0-9]{3,}"), re.compile("[0-9]+(/[0-9]{3,})?")  # pseudonyms


@dataclass
class SiteAgent:
    """Answers the coordinator for one site, and receives its peers' updates.

    `host` opens the site, and returns what the coordinator should know before round 1;
    `send_to_peer` sends a packed envelope to another site and returns the packed answer, or raises
    `ConnectionError`. Only the `coordinator`, by its signature, may ask; `guard` makes what holds
    each request against the accepted study, and `ledger` hears of each. `learn` is told what comes
    with the opening of a session, and raises `WrongSignature` where it does not count. A request
    that arrives again gets the stored answer. What goes wrong leaves as `disclosure` tells it, and
    stands as it is in the site's log.
    """

    host: Host
    send_to_peer: SendToPeer
    disclosure: Disclosure
    identity: Identity = field(default_factory=Identity)
    coordinator: str = ""
    guard: Callable[[Any], RequestGuard] | None = None
    ledger: Recorder = unrecorded
    learn: Callable[[bytes], object] = bytes
    _nonce: str = field(default_factory=partial(token_hex, 16), init=False)
    _guard: RequestGuard | None = field(default=None, init=False)
    _is_open: ThreadEvent = field(default_factory=ThreadEvent, init=False)
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
            self._note(LedgerEntry("unknown", "ask", refused=str(forgery)))
            return self._said("refused", self.coordinator)
        return self.identity.pack(self._answer_to(envelope), self.coordinator, session)

    def _session(self, envelope: RequestEnvelope, stamp: Seal) -> str:
        """Return the session of a request that the coordinator signed. Raises `ForgedEnvelope`."""
        if not self.identity.key:
            return ""
        if stamp.sender != self.coordinator:
            raise ForgedEnvelope(f"'{stamp.sender}' asked, who is not the coordinator")
        if envelope.number == READY:
            self._learn(envelope.body)
            return f"{stamp.session.partition('.')[0]}.{self._nonce}"
        if not stamp.session.endswith(f".{self._nonce}"):
            raise ForgedEnvelope("a letter is of another session")
        return stamp.session

    def _learn(self, news: bytes) -> None:
        """Learn what the coordinator brought. Raises `ForgedEnvelope` where it does not count."""
        try:
            self.learn(news)
        except WrongSignature as error:
            raise ForgedEnvelope(f"what came with the opening does not count: {error}") from None
        except DiskFailed as error:
            log_failure(self.disclosure.site, error)
            raise ForgedEnvelope("what came with the opening could not be kept") from None

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
            self._note(LedgerEntry("unknown", DELIVER, refused=str(forgery)))
            return self._said("refused", self.coordinator)
        if not self._is_open.is_set():
            return self._said("refused", stamp.sender)
        try:
            update = _update_in(envelope)
            if self._guard:
                self._guard.check_peer(stamp.sender or update.site, update)
        except Refused as refusal:
            self._note(LedgerEntry(stamp.sender, DELIVER, refused=str(refusal)))
            return self._said("refused", stamp.sender)
        self._site.receive(update)
        self._note(delivered_entry(stamp.sender or update.site, update))
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
        except Exception as error:
            log_failure(self.disclosure.site, error)
            return self._refusal(READY, "cannot open", error)
        [site] = engine.sites
        self._guard = self.guard(site) if self.guard else None
        self._site, self._engine, self.disclosure = site, engine, site.disclosure
        self._is_open.set()
        digest, size = sha256(description).hexdigest(), len(description)
        self._note(LedgerEntry(self.coordinator, OPEN, bytes=size, digest=digest))
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
            self._note(ledger_entry(self.coordinator, request, refused=str(refusal)))
            # It speaks of the request and the study alone, which the coordinator has.
            card = failure_card(self._site.name, request, refusal, str(refusal))
            return _failure(envelope.number, card)
        except BadInput as error:
            self._log_if_untold(error)
            self._note(ledger_entry(self.coordinator, request, failed=type(error).__name__))
            stage = type(request).__name__.lower()
            words = f"refuses in round {request.round} ({stage})"
            return self._refusal(envelope.number, words, error)
        except _NotDelivered as failure:
            self._note(ledger_entry(self.coordinator, request, failed=failure.card.error))
            return _failure(envelope.number, failure.card)
        except Exception as error:
            cause = error.__cause__ if isinstance(error, SiteFailed) else None
            self._log_if_untold(cause or error)
            self._note(
                ledger_entry(self.coordinator, request, failed=type(cause or error).__name__)
            )
            return _failure(envelope.number, self.disclosure.card(request, cause or error))
        return ReplyEnvelope(number=envelope.number, state="done", body=reply)

    def _note(self, entry: LedgerEntry) -> None:
        """Write down that nothing left; where the disk refuses, the process's own log tells it."""
        try:
            self.ledger(entry)
        except DiskFailed as error:
            log_failure(self.disclosure.site, error)

    def _log_if_untold(self, error: BaseException) -> None:
        """Log an error whose whole message the engine raised, and left for others to log."""
        if self._site.tells_all:
            log_failure(self.disclosure.site, error)

    def _refusal(self, number: int, verb: str, error: Exception) -> ReplyEnvelope:
        """Return what others are told of an input that the site cannot use."""
        refusal = f"site '{self.disclosure.site}' {verb}: {self.disclosure.message(error)}"
        return ReplyEnvelope(number=number, state="refused", body=refusal.encode())

    def _reply(self, request: Request, deliver_to: Sequence[str]) -> Reply:
        [reply] = self._engine.ask({self._site.name: request})
        if self._guard:
            self._guard.check_reply(request, reply)
        check_texts(reply, self.disclosure)
        peers = [name for name in deliver_to if name != self._site.name]
        receipt = reply.receipt(num_peers=len(peers)) if deliver_to else None
        entry = ledger_entry(self.coordinator, request, left=reply, to=deliver_to, receipt=receipt)
        head = self.ledger(entry)
        reply = replace(reply, ledger=head)
        if receipt is None:
            return reply
        self._deliver(request, reply, peers)
        if len(peers) < len(deliver_to):
            self._site.receive(reply)
        return replace(receipt, ledger=head)

    def _deliver(self, request: Request, reply: Reply, peers: Sequence[str]) -> None:
        """Send an update to the peers. Raises `SiteFailed` where one cannot be reached."""
        envelope = PeerEnvelope(body=encode(reply) if peers else b"")
        for peer in peers:
            try:
                self._send(self.identity.pack(envelope, peer), peer)
            except (ConnectionError, CorruptEnvelope, ForgedEnvelope) as error:
                log_failure(self.disclosure.site, error)
                told = phrase("its update did not reach '{peer}'", peer=Name(peer))
                raise _NotDelivered(self.disclosure.card(request, error, told)) from error

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


def check_texts(reply: Reply, disclosure: Disclosure) -> None:
    """Refuse to send a reply with a text that is no name of the study, digest or pseudonym.

    Its metrics have names that the task gives. Raises `RunFailed`.
    """
    names, ready = disclosure.names, reply.ready
    known = [reply.site, *(task for score in reply.scores for task in (score.site, score.task))]
    if ready:
        counted = (ready.patients, ready.sessions, ready.slices, *ready.cases.values())
        splits = {split for counts in counted for split in counts}
        known += [ready.site, *ready.tasks, *ready.cases, *(splits - _SPLITS)]
    metrics = {*reply.metrics, *(name for score in reply.scores for name in score.values)}
    odd = [
        *(text for text in known if text not in names),
        *(text for text in (reply.digest, reply.shared) if not _DIGEST.fullmatch(text)),
        *(score.patient for score in reply.scores if not _PATIENT.fullmatch(score.patient)),
        *(score.case for score in reply.scores if not _CASE.fullmatch(score.case)),
        *(name for name in metrics if not _is_metric(name, names)),
    ]
    if odd:
        raise RunFailed(
            f"a reply of site '{reply.site}' has texts that may not leave: {odd}",
            safe=phrase("its reply was kept back: it had a text that may not leave"),
        )


def _is_metric(metric: str, names: frozenset[str]) -> bool:
    """Tell whether the program gives a metric its name: psnr, dice_lesion, critics.T1w->T2w."""
    ends = [metric.removesuffix(name) for name in names if metric.endswith(name)]
    words = [metric, *(end.rstrip(".") for end in ends)]
    return any(word.isascii() and word.isidentifier() for word in words)


class _NotDelivered(SiteFailed):
    """An update did not reach a peer; its card is for others already."""


def _failure(number: int, card: FailureCard) -> ReplyEnvelope:
    return ReplyEnvelope(number=number, state="failed", body=json.dumps(asdict(card)).encode())
