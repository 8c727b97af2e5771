"""Sites elsewhere: the engine of hospitals. What carries its letters is not its business."""

import json
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from contextlib import closing
from dataclasses import dataclass, field, replace
from typing import TypeAlias

from safetensors import SafetensorError

from grandrounds.algorithms.topology import EVERYONE, Links, Quorum
from grandrounds.core.errors import BadInput, BadSite, BadUpdate, FailureCard, SiteFailed
from grandrounds.core.failures import failure_card
from grandrounds.core.messages import Describe, Reply, Request, decode, encode
from grandrounds.core.serialization import from_plain
from grandrounds.core.weights import Weights, first_not_finite
from grandrounds.engines.envelope import (
    READY,
    CorruptEnvelope,
    ReplyEnvelope,
    RequestEnvelope,
    pack,
    unpack,
)
from grandrounds.engines.replies import OnFailure, OnReply, ReplyCollector, Result, fail_if_missing

Call: TypeAlias = Callable[[str, bytes, float], bytes]
_ENDS = ("done", "failed", "refused", "stale")
_TOO_MANY = 5


class SiteSilent(RuntimeError):  # noqa: N818 - the word that a failure card shows
    """A site gave no sign of life."""


class ConnectionInterrupted(ConnectionError):  # noqa: N818 - the word for what happened
    """A line broke after it had held for a while."""


class Abandoned(RuntimeError):  # noqa: N818 - nobody waits for this answer any more
    """The coordinator went on without this answer."""


@dataclass(frozen=True, kw_only=True)
class Timeouts:
    """How long to wait for a site elsewhere, in seconds.

    A working site says so every `poll`; one that says nothing for `silence` is dead; one that lives
    may take `deadline` for one request (0: as long as it lives). Its process may take `start` to be
    there at all, and is asked every `knock` until then. `pause` lies before any other new try.
    """

    poll: float = 2.0
    silence: float = 20.0
    start: float = 120.0
    connect_every: float = 1.0
    deadline: float = 0.0
    pause: float = 0.2

    @property
    def per_call(self) -> float:
        """Give the seconds after which one call is lost: several fit into the silence."""
        return self.poll + self.silence / 4

    def before_again(self, number: int) -> float:
        """Give the seconds before this request is asked again."""
        return self.connect_every if number == READY else self.pause


@dataclass
class SiteConnection:
    """The line to one site.

    `call` brings a sealed letter there and the sealed answer back, or raises `ConnectionError`
    where it hears nothing for so many seconds, `Interrupted` if it heard something before. One
    thread numbers the requests and gives them up; any may ask.
    """

    site: str
    call: Call
    patience: Timeouts
    _number: int = field(default=READY, init=False)

    def begin(self) -> int:
        """Number the next request; nobody waits for the one before any longer."""
        self._number += 1
        return self._number

    def ask(self, number: int, body: bytes, deliver_to: Sequence[str] = ()) -> ReplyEnvelope:
        """Ask, and ask again where the line breaks, until the site has answered.

        Raises `SiteSilent`, `TimeoutError` past the deadline, `BadLetter` where letters come
        damaged again and again, and `GivenUp`.
        """
        whole = RequestEnvelope(
            number=number,
            wait=self.patience.poll,
            deliver_to=tuple(deliver_to),
            body=body,
        )
        letter, watch = whole, self._watch(number)
        while self._number == number:
            answer = self._once(letter, watch)
            if answer and answer.state in _ENDS:
                return answer
            working = answer is not None and answer.state == "working"
            letter = replace(whole, body=b"") if working else whole
            if working:
                watch.waiting()
            else:
                time.sleep(self.patience.before_again(number))
        raise Abandoned(f"request {number} of '{self.site}' was given up")

    def _watch(self, number: int) -> "_Watch":
        if number == READY:
            return _Watch(self.patience.start)
        return _Watch(self.patience.silence, self.patience.deadline)

    def abandon(self) -> None:
        """Wait no longer for an answer; the site finishes what it has begun."""
        self.begin()

    def _once(self, letter: RequestEnvelope, watch: "_Watch") -> ReplyEnvelope | None:
        """Call once; None where nothing came that answers this letter."""
        try:
            answer = unpack(
                self.call(self.site, pack(letter), self.patience.per_call), ReplyEnvelope
            )
        except ConnectionInterrupted:
            watch.heard()
            return None
        except ConnectionError as error:
            watch.silent(error)
            return None
        except CorruptEnvelope:
            answer = None
        if answer is None or answer.number != letter.number:
            watch.damaged()
            return None
        watch.heard()
        return answer


@dataclass
class _Watch:
    """Watches over one request: how long it has taken, and when the site was last heard."""

    silence: float
    deadline: float = 0.0
    _began: float = field(default_factory=time.monotonic)
    _heard: float = field(default_factory=time.monotonic)
    _damaged: int = 0

    def heard(self) -> None:
        """Note a sign of life."""
        self._heard, self._damaged = time.monotonic(), 0

    def waiting(self) -> None:
        """Note that the site works on. Raises `TimeoutError` past the deadline."""
        taken = time.monotonic() - self._began
        if self.deadline and taken > self.deadline:
            limit = f"the deadline is {self.deadline:g} s"
            raise TimeoutError(f"it lives and has not answered in {taken:.0f} s; {limit}")

    def silent(self, error: ConnectionError) -> None:
        """Note that nothing came. Raises `SiteSilent` when that is too long."""
        silence = time.monotonic() - self._heard
        if silence > self.silence:
            raise SiteSilent(f"no sign of life for {silence:.0f} s: {error}")

    def damaged(self) -> None:
        """Note a letter that does not fit. Raises `BadLetter` at the fifth."""
        self._damaged += 1
        if self._damaged == _TOO_MANY:
            raise CorruptEnvelope(f"{_TOO_MANY} letters came damaged, one after the other")


@dataclass(frozen=True)
class RemoteEngine:
    """The sites of a study, each at the end of a line; all of them work at once.

    `on_reply` hears of every reply in roster order, as soon as those before it are there;
    `on_failure` of every site that a quorum goes on without. A site too slow for the quorum is
    left behind while it works.
    """

    lines: tuple[SiteConnection, ...]
    on_reply: OnReply
    on_failure: OnFailure = fail_if_missing

    links = Links.MESH

    @property
    def names(self) -> tuple[str, ...]:
        """Give the roster."""
        return tuple(line.site for line in self.lines)

    def ask(
        self,
        requests: Mapping[str, Request],
        *,
        deliver_to: Sequence[str] = (),
        quorum: Quorum = EVERYONE,
    ) -> list[Reply]:
        """Let the sites answer, and give their replies in roster order.

        Raises `SiteFailed` with the failure card of the first that fails, unless the quorum can do
        without it, and the `BadSite` that a site refuses with.
        """
        roll = ReplyCollector(quorum, self.on_reply, self.on_failure)
        with closing(self._results(requests, deliver_to, quorum)) as results:
            return roll.collect(self.names, requests, results)

    def _results(
        self, requests: Mapping[str, Request], deliver_to: Sequence[str], quorum: Quorum
    ) -> Generator[tuple[str, Result], None, None]:
        """Ask all at once, and give what comes of it as it comes."""
        late_at = time.monotonic() + quorum.patience if quorum.patience else 0.0
        pool = ThreadPoolExecutor(len(requests))
        lines = [line for line in self.lines if line.site in requests]
        bodies = _encoded(requests)
        open_ = {
            pool.submit(
                answered, line, line.begin(), requests[line.site], bodies[line.site], deliver_to
            ): line
            for line in lines
        }
        came = 0
        try:
            while open_:
                hurries = late_at and quorum.least is not None and came >= quorum.least
                timeout = max(0.0, late_at - time.monotonic()) if hurries else None
                done, _ = wait(open_, timeout, FIRST_COMPLETED)
                for future in done:
                    came += isinstance(future.result(), Reply)
                    yield open_.pop(future).site, future.result()
                if not done:
                    yield from _late([line.site for line in open_.values()], requests, quorum)
                    return
        finally:
            for line in open_.values():
                line.abandon()
            pool.shutdown(wait=False)


def _encoded(requests: Mapping[str, Request]) -> dict[str, bytes]:
    """Encode each request, and what several sites get only once."""
    found, bodies = dict[object, bytes](), dict[str, bytes]()
    for site, request in requests.items():
        tensors: Weights = getattr(request, "weights", {})
        words = str(replace(request, weights={}) if tensors else request)
        same = (words, *((name, id(tensor)) for name, tensor in tensors.items()))
        if same not in found:
            found[same] = encode(request)
        bodies[site] = found[same]
    return bodies


def answered(
    line: SiteConnection, number: int, request: Request, body: bytes, deliver_to: Sequence[str]
) -> Result:
    """Ask one site, and give what came of it."""
    try:
        answer = line.ask(number, body, deliver_to)
        return _read(line.site, request, _body(answer))
    except (SiteFailed, BadInput) as failure:
        return failure
    except (SiteSilent, TimeoutError, CorruptEnvelope, BadUpdate, FloatingPointError) as error:
        return SiteFailed(failure_card(line.site, request, error, str(error)))


def _body(answer: ReplyEnvelope) -> bytes:
    """Give what a site has done. Raises what it failed or refused with."""
    if answer.state == "failed":
        raise SiteFailed(from_plain(FailureCard, json.loads(answer.body)))
    if answer.state == "refused":
        raise BadSite(answer.body.decode())
    if answer.state == "stale":
        raise BadUpdate(f"it is past request {answer.number}: does another coordinator ask it?")
    return answer.body


def _read(site: str, request: Request, body: bytes) -> Reply:
    """Read a reply, and trust nothing in it that can be checked."""
    try:
        reply = decode(body)
    except (ValueError, KeyError, TypeError, SafetensorError) as error:
        found = f"{type(error).__name__}: {error}"
        raise BadUpdate(f"what came from '{site}' is no reply ({found})") from error
    if not isinstance(reply, Reply) or (reply.site, reply.round) != (site, request.round):
        raise BadUpdate(f"it does not answer what '{site}' was asked in round {request.round}")
    odd = first_not_finite(reply.weights)
    if odd:
        raise FloatingPointError(f"'{odd}' is not finite")
    return reply


def _late(
    sites: Sequence[str], requests: Mapping[str, Request], quorum: Quorum
) -> Iterator[tuple[str, SiteFailed]]:
    for site in sites:
        error = TimeoutError(f"has not answered in {quorum.patience:g} s, the patience")
        yield site, SiteFailed(failure_card(site, requests[site], error, str(error)))


def ready(lines: Sequence[SiteConnection]) -> dict[str, bytes]:
    """Wait until every site is open, and give what each one says of itself.

    Raises `BadSite` for the first in the roster that refuses, and `SiteFailed` for a silent one.
    """
    with ThreadPoolExecutor(len(lines)) as pool:
        try:
            return dict(pool.map(_opened, lines))
        finally:
            for line in lines:
                line.abandon()


def _opened(line: SiteConnection) -> tuple[str, bytes]:
    try:
        return line.site, _body(line.ask(READY, b""))
    except (SiteSilent, TimeoutError, CorruptEnvelope, BadUpdate) as error:
        raise SiteFailed(failure_card(line.site, Describe(), error, str(error))) from error
