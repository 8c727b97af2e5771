"""A site that is asked from elsewhere: one request at a time, each answered once."""

import json
import logging
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import AbstractContextManager, ExitStack
from dataclasses import asdict, dataclass, field
from threading import Lock
from typing import TypeAlias, cast

from grandrounds.core.errors import BadInput, SiteFailed
from grandrounds.core.failures import Redactor, failure_card
from grandrounds.core.messages import Reply, Request, decode, encode
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
_log = logging.getLogger(__name__)  # the site's own: there a refusal stands with its paths
_TRIES = 5  # to bring mail to a peer
_PAUSE = 0.2  # seconds between them


@dataclass
class SiteAgent:
    """Answers the coordinator for one site, and takes its peers' mail.

    `host` opens the site, and says what the coordinator should know before round 1; `post` brings
    sealed mail to another site and its sealed answer back, or raises `ConnectionError`. A request
    that comes again is answered from the stored answer.
    """

    host: Host
    post: SendToPeer
    _worker: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(1))
    _opened: ExitStack = field(default_factory=ExitStack)
    _lock: Lock = field(default_factory=Lock)
    _number: int = READY

    def __post_init__(self) -> None:
        self._answer: Future[ReplyEnvelope] = self._worker.submit(self._open)

    def answer(self, sealed: bytes) -> bytes:
        """Answer a sealed `Ask` with a sealed `Answer`, within the seconds that it waits."""
        try:
            return pack(self._answered(unpack(sealed, RequestEnvelope)))
        except CorruptEnvelope:
            return pack(ReplyEnvelope(number=-1, state="damaged"))

    def receive_update(self, sealed: bytes) -> bytes:
        """Put a peer's sealed `Mail` into the mailbox, and acknowledge it."""
        try:
            update = cast(Reply, decode(unpack(sealed, PeerEnvelope).body))
        except CorruptEnvelope:
            return pack(ReplyEnvelope(number=-1, state="damaged"))
        self._site.receive(update)
        return pack(ReplyEnvelope(number=-1, state="done"))

    def close(self) -> None:
        """Finish what has begun, and close the site."""
        self._worker.submit(self._opened.close).result()
        self._worker.shutdown()

    def _answered(self, ask: RequestEnvelope) -> ReplyEnvelope:
        answer = self._begun(ask)
        if isinstance(answer, ReplyEnvelope):
            return answer
        done, _ = wait([answer], timeout=ask.wait)
        return answer.result() if done else ReplyEnvelope(number=ask.number, state="working")

    def _begun(self, ask: RequestEnvelope) -> ReplyEnvelope | Future[ReplyEnvelope]:
        """Begin what is new; what was begun before is not begun again."""
        with self._lock:
            if ask.number < self._number:
                return ReplyEnvelope(number=ask.number, state="stale")
            if ask.number > self._number:
                if not ask.body:
                    return ReplyEnvelope(number=ask.number, state="unknown")
                self._number = ask.number
                self._answer = self._worker.submit(self._do, ask)
            return self._answer

    def _open(self) -> ReplyEnvelope:
        try:
            simulation, facts = self._opened.enter_context(self.host)
        except BadInput as refusal:
            _log.error("%s", refusal)
            return _unopened(str(refusal))
        except Exception as error:
            _log.exception("the site cannot open")
            return _unopened(f"the site cannot open: {type(error).__name__}: {error}")
        [self._site] = simulation.sites
        self._simulation = simulation
        return ReplyEnvelope(number=READY, state="done", body=facts)

    def _do(self, ask: RequestEnvelope) -> ReplyEnvelope:
        if ask.number < self._number:  # it was given up before its turn came
            return ReplyEnvelope(number=ask.number, state="stale")
        request = cast(Request, decode(ask.body))
        try:
            reply = encode(self._reply(request, ask.deliver_to))
        except SiteFailed as failure:
            card = json.dumps(asdict(failure.card)).encode()
            return ReplyEnvelope(number=ask.number, state="failed", body=card)
        except BadInput as refusal:
            return ReplyEnvelope(number=ask.number, state="refused", body=str(refusal).encode())
        return ReplyEnvelope(number=ask.number, state="done", body=reply)

    def _reply(self, request: Request, deliver_to: Sequence[str]) -> Reply:
        [reply] = self._simulation.ask({self._site.name: request})
        if not deliver_to:
            return reply
        peers = [name for name in deliver_to if name != self._site.name]
        self._deliver(request, reply, peers)
        if len(peers) < len(deliver_to):
            self._site.receive(reply)
        return reply.receipt(num_peers=len(peers))

    def _deliver(self, request: Request, reply: Reply, peers: Sequence[str]) -> None:
        """Bring an update to its peers. Raises `SiteFailed` where one cannot be reached."""
        letter = pack(PeerEnvelope(body=encode(reply))) if peers else b""
        for peer in peers:
            try:
                self._bring(letter, peer)
            except (ConnectionError, CorruptEnvelope) as error:
                text = f"its update did not reach '{peer}': {error}"
                raise SiteFailed(failure_card(self._site.name, request, error, text)) from error

    def _bring(self, letter: bytes, peer: str) -> None:
        """Bring mail to a peer; it does no harm to bring it twice. Raises `ConnectionError`."""
        for tries_left in reversed(range(_TRIES)):
            try:
                if unpack(self.post(peer, letter), ReplyEnvelope).state == "done":
                    return
            except (ConnectionError, CorruptEnvelope):
                if not tries_left:
                    raise
            time.sleep(_PAUSE)
        raise ConnectionError(f"it came damaged {_TRIES} times")


def _unopened(sentence: str) -> ReplyEnvelope:
    """Tell why without any path: what else only the site may know is known once it is open."""
    return ReplyEnvelope(number=READY, state="refused", body=Redactor()(sentence).encode())
