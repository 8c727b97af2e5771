"""The coordinator sends requests to sites on other machines, over any transport of bytes."""

import json
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from contextlib import closing
from dataclasses import dataclass, field, replace
from functools import partial
from secrets import token_hex
from typing import TypeAlias

from grandrounds.algorithms.topology import EVERYONE, Links, Quorum
from grandrounds.core.errors import BadInput, BadSite, BadUpdate, FailureCard, SiteFailed
from grandrounds.core.failures import failure_card
from grandrounds.core.messages import Describe, Reply, Request, decode, encode
from grandrounds.core.serialization import from_plain
from grandrounds.core.weights import Weights, first_not_finite
from grandrounds.engines.envelope import (
    READY,
    CorruptEnvelope,
    ForgedEnvelope,
    Identity,
    ReplyEnvelope,
    RequestEnvelope,
)
from grandrounds.engines.replies import OnFailure, OnReply, ReplyCollector, Result, fail_if_missing

Call: TypeAlias = Callable[[str, bytes, float], bytes]
Check: TypeAlias = Callable[[Request, Reply, bool], str]
_ENDS = ("done", "failed", "refused", "stale")
_TOO_MANY = 5


def believed(request: Request, reply: Reply, delivered: bool) -> str:  # noqa: ARG001
    """Find nothing wrong with a reply: for sites of this machine."""
    return ""


class SiteSilent(RuntimeError):  # noqa: N818 - the word that a failure card shows
    """Nothing was received from a site for too long."""


class ConnectionInterrupted(ConnectionError):  # noqa: N818 - the word for what happened
    """A connection broke after it had received something."""


class Abandoned(RuntimeError):  # noqa: N818 - nobody waits for this answer any more
    """The coordinator went on without this answer."""


_UNANSWERED = (SiteSilent, TimeoutError, CorruptEnvelope, ForgedEnvelope, BadUpdate)


@dataclass(frozen=True, kw_only=True)
class Timeouts:
    """How long to wait for a site elsewhere, in seconds.

    A working site says so every `poll`; one that is silent for `silence` has failed; one that
    responds may take `deadline` for one request (0: any time). Its process may take `start` to
    start, and is tried every `connect_every` until then. `pause` precedes any other new try.
    """

    poll: float = 2.0
    silence: float = 20.0
    start: float = 120.0
    connect_every: float = 1.0
    deadline: float = 0.0
    pause: float = 0.2

    @property
    def per_call(self) -> float:
        """Return the seconds after which one call counts as lost: several fit into the silence."""
        return self.poll + self.silence / 4

    def before_again(self, number: int) -> float:
        """Return the seconds before this request is sent again."""
        return self.connect_every if number == READY else self.pause


@dataclass
class SiteConnection:
    """The connection to one site.

    `call` sends a packed envelope and returns the packed answer, or raises `ConnectionError` where
    nothing arrives for the seconds given, `ConnectionInterrupted` if something arrived before. One
    thread numbers requests and abandons them; any thread may ask.
    """

    site: str
    call: Call
    timeouts: Timeouts
    identity: Identity = field(default_factory=Identity)
    _number: int = field(default=READY, init=False)
    _nonce: str = field(default_factory=partial(token_hex, 16), init=False)
    _session: str = field(default="", init=False)

    def begin(self) -> int:
        """Return the number of the next request; the one before is abandoned."""
        self._number += 1
        return self._number

    def ask(self, number: int, body: bytes, deliver_to: Sequence[str] = ()) -> ReplyEnvelope:
        """Send a request, again where the connection breaks, and return the site's answer.

        Raises `SiteSilent`, `TimeoutError` past the deadline, `CorruptEnvelope` where envelopes
        arrive damaged again and again, `ForgedEnvelope` where they are not of this site and
        session, and `Abandoned`.
        """
        complete = RequestEnvelope(
            number=number,
            wait=self.timeouts.poll,
            deliver_to=tuple(deliver_to),
            body=body,
        )
        envelope, watch = complete, self._watch(number)
        while self._number == number:
            answer = self._once(envelope, watch)
            if answer and answer.state in _ENDS:
                return answer
            working = answer is not None and answer.state == "working"
            envelope = replace(complete, body=b"") if working else complete
            if working:
                watch.waiting()
            else:
                time.sleep(self.timeouts.before_again(number))
        raise Abandoned(f"request {number} of '{self.site}' was given up")

    def _watch(self, number: int) -> "_Watch":
        if number == READY:
            return _Watch(self.timeouts.start)
        return _Watch(self.timeouts.silence, self.timeouts.deadline)

    def abandon(self) -> None:
        """Wait no longer for an answer; the site still finishes the request."""
        self.begin()

    def _once(self, envelope: RequestEnvelope, watch: "_Watch") -> ReplyEnvelope | None:
        """Call once; return the answer to this envelope, or None where none arrives."""
        damage: CorruptEnvelope | ForgedEnvelope = CorruptEnvelope()
        try:
            answer = self._exchanged(envelope)
        except ConnectionInterrupted:
            watch.alive()
            return None
        except ConnectionError as error:
            watch.silent(error)
            return None
        except (CorruptEnvelope, ForgedEnvelope) as error:
            answer, damage = None, error
        forgot = answer is not None and answer.state == "unknown" and bool(envelope.body)
        if answer is None or answer.number != envelope.number or forgot:
            watch.damaged(damage)
            return None
        watch.alive()
        return answer

    def _exchanged(self, envelope: RequestEnvelope) -> ReplyEnvelope:
        """Send an envelope, and return the answer that the site has signed in this session.

        A session is named by a random word of each side, so that nothing of an earlier one counts.
        """
        packed = self.identity.pack(envelope, self.site, self._session or self._nonce)
        data = self.call(self.site, packed, self.timeouts.per_call)
        answer, stamp = self.identity.unpack(data, ReplyEnvelope)
        if self.identity.key and stamp.sender != self.site:
            raise ForgedEnvelope("a reply is not of the site that was asked")
        if self.identity.key and not self._session and stamp.session.startswith(self._nonce + "."):
            self._session = stamp.session
        if self.identity.key and not stamp.session:
            raise self._not_taken(answer)
        if stamp.session != self._session:
            raise ForgedEnvelope("a reply is of another session")
        return answer

    def _not_taken(self, answer: ReplyEnvelope) -> CorruptEnvelope | ForgedEnvelope:
        """Return what it means that a site took an envelope for none of a session."""
        if answer.state == "damaged":
            return CorruptEnvelope("the site got a damaged letter")
        if not self._session:
            return ForgedEnvelope("the site does not take the coordinator's signature")
        words = "the site knows no such session, as if its process had been started anew"
        return ForgedEnvelope(words)


@dataclass
class _Watch:
    """Checks the timeouts of one request: its time so far, and since the last sign of life."""

    silence: float
    deadline: float = 0.0
    _began: float = field(default_factory=time.monotonic)
    _last_sign: float = field(default_factory=time.monotonic)
    _damaged: int = 0

    def alive(self) -> None:
        """Note a sign of life."""
        self._last_sign, self._damaged = time.monotonic(), 0

    def waiting(self) -> None:
        """Note that the site still works. Raises `TimeoutError` past the deadline."""
        taken = time.monotonic() - self._began
        if self.deadline and taken > self.deadline:
            limit = f"the deadline is {self.deadline:g} s"
            raise TimeoutError(f"it lives and has not answered in {taken:.0f} s; {limit}")

    def silent(self, error: ConnectionError) -> None:
        """Note that nothing arrived. Raises `SiteSilent` after too long a silence."""
        silence = time.monotonic() - self._last_sign
        if silence > self.silence:
            raise SiteSilent(f"no sign of life for {silence:.0f} s: {error}")

    def damaged(self, error: CorruptEnvelope | ForgedEnvelope) -> None:
        """Note an envelope that is no valid answer.

        Raises `CorruptEnvelope` or `ForgedEnvelope` at the fifth.
        """
        self._damaged += 1
        if self._damaged == _TOO_MANY:
            if isinstance(error, ForgedEnvelope):
                words = f"{_TOO_MANY} letters did not count, one after the other: {error}"
                raise ForgedEnvelope(words)
            raise CorruptEnvelope(f"{_TOO_MANY} letters came damaged, one after the other")


@dataclass(frozen=True)
class RemoteEngine:
    """The sites of a study, each over its own connection; all of them work at once.

    `check` returns what is wrong with a reply; empty for nothing. `on_reply` is called with every
    reply in roster order, as soon as those before it are there, `on_failure` with the card of every
    site that a quorum continues without. A request to a site
    that is too slow for the quorum is abandoned while the site works.
    """

    connections: tuple[SiteConnection, ...]
    on_reply: OnReply
    on_failure: OnFailure = fail_if_missing
    check: Check = believed

    links = Links.MESH

    @property
    def names(self) -> tuple[str, ...]:
        """Return the roster."""
        return tuple(connection.site for connection in self.connections)

    def ask(
        self,
        requests: Mapping[str, Request],
        *,
        deliver_to: Sequence[str] = (),
        quorum: Quorum = EVERYONE,
    ) -> list[Reply]:
        """Let the sites answer, and return their replies in roster order.

        Raises `SiteFailed` with the failure card of the first that fails, unless the quorum can do
        without it, and the `BadSite` of a site that refuses.
        """
        collector = ReplyCollector(quorum, self.on_reply, self.on_failure)
        with closing(self._results(requests, deliver_to, quorum)) as results:
            return collector.collect(self.names, requests, results)

    def _results(
        self, requests: Mapping[str, Request], deliver_to: Sequence[str], quorum: Quorum
    ) -> Generator[tuple[str, Result], None, None]:
        """Send all requests at once, and yield results as they arrive."""
        late_at = time.monotonic() + quorum.patience if quorum.patience else 0.0
        pool = ThreadPoolExecutor(len(requests))
        connections = [connection for connection in self.connections if connection.site in requests]
        bodies = _encoded(requests)
        waiting = {
            pool.submit(
                answered,
                connection,
                connection.begin(),
                requests[connection.site],
                bodies[connection.site],
                deliver_to,
                self.check,
            ): connection
            for connection in connections
        }
        num_replies = 0
        try:
            while waiting:
                hurries = late_at and quorum.least is not None and num_replies >= quorum.least
                timeout = max(0.0, late_at - time.monotonic()) if hurries else None
                done, _ = wait(waiting, timeout, FIRST_COMPLETED)
                for future in done:
                    num_replies += isinstance(future.result(), Reply)
                    yield waiting.pop(future).site, future.result()
                if not done:
                    yield from _late(
                        [connection.site for connection in waiting.values()], requests, quorum
                    )
                    return
        finally:
            for connection in waiting.values():
                connection.abandon()
            pool.shutdown(wait=False)


def _encoded(requests: Mapping[str, Request]) -> dict[str, bytes]:
    """Return each site's request as bytes; equal requests are encoded once."""
    encoded, bodies = dict[object, bytes](), dict[str, bytes]()
    for site, request in requests.items():
        tensors: Weights = getattr(request, "weights", {})
        words = str(replace(request, weights={}) if tensors else request)
        same = (words, *((name, id(tensor)) for name, tensor in tensors.items()))
        if same not in encoded:
            encoded[same] = encode(request)
        bodies[site] = encoded[same]
    return bodies


def answered(
    connection: SiteConnection,
    number: int,
    request: Request,
    body: bytes,
    deliver_to: Sequence[str],
    check: Check,
) -> Result:
    """Ask one site, and return its reply or its failure."""
    try:
        answer = connection.ask(number, body, deliver_to)
        reply = _read(connection.site, request, _body(connection.site, answer))
        if problem := check(request, reply, bool(deliver_to)):
            raise BadUpdate(problem)
        return reply
    except (SiteFailed, BadInput) as failure:
        return failure
    except (*_UNANSWERED, FloatingPointError) as error:
        return SiteFailed(failure_card(connection.site, request, error, str(error)))


def _body(site: str, answer: ReplyEnvelope) -> bytes:
    """Return the body of a site's answer. Raises what the site failed or refused with."""
    if answer.state == "failed":
        raise SiteFailed(_card(site, answer.body))
    if answer.state == "refused":
        raise BadSite(answer.body.decode())
    if answer.state == "stale":
        raise BadUpdate(f"it is past request {answer.number}: does another coordinator ask it?")
    return answer.body


def _read(site: str, request: Request, body: bytes) -> Reply:
    """Decode a reply, and check that it answers the request with finite tensors."""
    try:
        reply = decode(body)
    except Exception as error:  # whatever it was made of, it fails as that site's letter
        cause = type(error).__name__
        raise BadUpdate(f"what came from '{site}' is no reply ({cause})") from error
    if not isinstance(reply, Reply) or (reply.site, reply.round) != (site, request.round):
        raise BadUpdate(f"it does not answer what '{site}' was asked in round {request.round}")
    odd = first_not_finite(reply.weights)
    if odd:
        raise FloatingPointError(f"'{odd}' is not finite")
    return reply


def _card(site: str, body: bytes) -> FailureCard:
    """Return a site's failure card, which bears its own name. Raises `BadUpdate`."""
    try:
        card = from_plain(FailureCard, json.loads(body))
    except Exception as error:
        raise BadUpdate(f"what came is no failure card ({type(error).__name__})") from error
    if card.site != site:
        raise BadUpdate("a failure card bears the name of another site")
    return card


def _late(
    sites: Sequence[str], requests: Mapping[str, Request], quorum: Quorum
) -> Iterator[tuple[str, SiteFailed]]:
    for site in sites:
        error = TimeoutError(f"has not answered in {quorum.patience:g} s, the patience")
        yield site, SiteFailed(failure_card(site, requests[site], error, str(error)))


def ready(connections: Sequence[SiteConnection], news: bytes = b"") -> dict[str, bytes]:
    """Wait until every site is open, and return the bytes with which each describes itself.

    `news` is what each is told at the opening. Raises `BadSite` for the first in the roster that
    refuses, and `SiteFailed` for a silent one.
    """
    with ThreadPoolExecutor(len(connections)) as pool:
        try:
            return dict(pool.map(partial(_describe, news), connections))
        finally:
            for connection in connections:
                connection.abandon()


def _describe(news: bytes, connection: SiteConnection) -> tuple[str, bytes]:
    try:
        return connection.site, _body(connection.site, connection.ask(READY, news))
    except _UNANSWERED as error:
        raise SiteFailed(failure_card(connection.site, Describe(), error, str(error))) from error
