"""Sites elsewhere: the engine of hospitals. What carries its letters is not its business."""

import json
import time
from collections.abc import Generator, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from contextlib import closing
from dataclasses import dataclass, replace
from typing import TypeAlias

from safetensors import SafetensorError

from grandrounds.engines.gather import given, in_turn
from grandrounds.engines.letters import READY, Answer, BadLetter
from grandrounds.engines.lines import Line, SiteSilent
from grandrounds.engines.quorum import OnFailure, Roll, untold
from grandrounds.engines.simulation import OnReply
from grandrounds.errors import BadInput, BadSite, BadUpdate, FailureCard, SiteFailed
from grandrounds.failures import card_of
from grandrounds.messages import Describe, Reply, Request, decode, encode
from grandrounds.plain import revive
from grandrounds.topologies.topology import EVERYONE, Links, Quorum
from grandrounds.weights import Weights, first_not_finite

Result: TypeAlias = Reply | Exception


@dataclass(frozen=True)
class Remote:
    """The sites of a study, each at the end of a line; all of them work at once.

    `on_reply` hears of every reply in roster order, as soon as those before it are there;
    `on_failure` of every site that a quorum goes on without. A site too slow for the quorum is
    left behind while it works.
    """

    lines: tuple[Line, ...]
    on_reply: OnReply
    on_failure: OnFailure = untold

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
        roll = Roll(quorum, self.on_failure)
        hurried = quorum.least is None
        with closing(self._results(requests, deliver_to, quorum)) as results:
            for site, result in in_turn(self.names, requests, results, hurried=hurried):
                with roll.call():
                    reply = given(result)
                    self.on_reply(requests[site], reply)
                    roll.note(requests[site], reply)
        return roll.answered()

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
                line.give_up()
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
    line: Line, number: int, request: Request, body: bytes, deliver_to: Sequence[str]
) -> Result:
    """Ask one site, and give what came of it."""
    try:
        answer = line.ask(number, body, deliver_to)
        return _read(line.site, request, _body(answer))
    except (SiteFailed, BadInput) as failure:
        return failure
    except (SiteSilent, TimeoutError, BadLetter, BadUpdate, FloatingPointError) as error:
        return SiteFailed(card_of(line.site, request, error, str(error)))


def _body(answer: Answer) -> bytes:
    """Give what a site has done. Raises what it failed or refused with."""
    if answer.state == "failed":
        raise SiteFailed(revive(FailureCard, json.loads(answer.body)))
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
        yield site, SiteFailed(card_of(site, requests[site], error, str(error)))


def ready(lines: Sequence[Line]) -> dict[str, bytes]:
    """Wait until every site is open, and give what each one says of itself.

    Raises `BadSite` for the first in the roster that refuses, and `SiteFailed` for a silent one.
    """
    with ThreadPoolExecutor(len(lines)) as pool:
        try:
            return dict(pool.map(_opened, lines))
        finally:
            for line in lines:
                line.give_up()


def _opened(line: Line) -> tuple[str, bytes]:
    try:
        return line.site, _body(line.ask(READY, b""))
    except (SiteSilent, TimeoutError, BadLetter, BadUpdate) as error:
        raise SiteFailed(card_of(line.site, Describe(), error, str(error))) from error
