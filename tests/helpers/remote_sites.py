"""Sites behind letters in this process, which do as they are told, and the way to them."""

import threading
import time
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from threading import Event
from typing import TypeAlias

import pytest
from torch import tensor

from grandrounds.core.errors import FailureCard, SiteFailed
from grandrounds.core.messages import Reply, Request, Train
from grandrounds.core.weights import digest
from grandrounds.engines.envelope import ReplyEnvelope, RequestEnvelope, pack, unpack
from grandrounds.engines.in_process import InProcessEngine
from grandrounds.engines.remote import Call, RemoteEngine, SiteConnection, Timeouts
from grandrounds.engines.remote_site import SendToPeer, SiteAgent
from grandrounds.site.site import Promise, Site
from tests.helpers.federation import built, ignore, tiny

ORDER = Train(round=1, since=0)
NEXT = replace(ORDER, round=2)
NAMES = ("alder", "birch", "cedar")
LONG = 10.0  # seconds; nobody waits for so long unless something is wrong
QUICK = Timeouts(poll=0.05, silence=2.0, start=2.0, connect_every=0.01, pause=0.01)
Happens: TypeAlias = Callable[[int, bytes], bytes]
Act: TypeAlias = Callable[[str, Request], Reply]


def answered(site: str, request: Request) -> Reply:
    """A reply of four bytes: the number of the round."""
    weights = {"w": tensor([float(request.round)])}
    return Reply(site=site, round=request.round, sent=4, weights=weights)


@dataclass(frozen=True)
class Odd(Site):
    """A site that does as it is told."""

    act: Act = answered

    def begin(self, request: Request) -> Promise:
        return lambda: self.act(self.name, request)


def odd(site: Site, act: Act = answered) -> Odd:
    """The same site with an empty mailbox, which does as it is told."""
    known = {f.name: getattr(site, f.name) for f in fields(Site) if f.name != "mailbox"}
    return Odd(**known, act=act)


def nowhere(peer: str, letter: bytes) -> bytes:
    raise ConnectionError(f"no way to {peer}")


@dataclass
class Attend:
    """Opens sites that do as they are told; who waits at the gate is let go before they close."""

    sites: Mapping[str, Site]
    gate: Event = field(default_factory=Event)
    opened: list[SiteAgent] = field(default_factory=list[SiteAgent])

    def __call__(self, name: str, act: Act = answered, post: SendToPeer = nowhere) -> SiteAgent:
        simulation = InProcessEngine((odd(self.sites[name], act),), ignore)
        self.opened.append(
            SiteAgent(nullcontext((simulation, name.encode())), post, self.sites[name].disclosure)
        )
        return self.opened[-1]


@contextmanager
def attending(sites: Mapping[str, Site]) -> Generator[Attend, None, None]:
    """Sites behind letters, which are closed in the end."""
    attend = Attend(sites)
    try:
        yield attend
    finally:
        attend.gate.set()
        for attendant in attend.opened:
            attendant.close()


def sites_of(folder: Path) -> dict[str, Site]:
    """Three real sites."""
    return {site.name: site for site in built(tiny(sites=3), folder).sites.sites}


def unharmed(number: int, sealed: bytes) -> bytes:
    """What happens to a letter on a good day."""
    return sealed


@dataclass
class Way:
    """The way to sites in this process; each call may suffer `there` and `back`, by its number."""

    attendants: Mapping[str, SiteAgent]
    there: Happens = unharmed
    back: Happens = unharmed
    letters: list[RequestEnvelope] = field(default_factory=list[RequestEnvelope])

    def __call__(self, site: str, sealed: bytes, timeout: float) -> bytes:
        """Bring a letter to its site, and the answer back."""
        self.letters.append(unpack(sealed, RequestEnvelope))
        number = len(self.letters)
        return self.back(number, self.attendants[site].answer(self.there(number, sealed)))


@dataclass
class Slow:
    """Waits at the gate before it answers, and notes what it was asked."""

    gate: Event
    asked: list[Request] = field(default_factory=list[Request])

    def __call__(self, site: str, request: Request) -> Reply:
        self.asked.append(request)
        assert self.gate.wait(LONG)
        return answered(site, request)


@dataclass
class Counted:
    """Answers at once, and notes what it was asked."""

    asked: list[Request] = field(default_factory=list[Request])

    def __call__(self, site: str, request: Request) -> Reply:
        self.asked.append(request)
        return answered(site, request)


def failing(error: Exception) -> Act:
    def fail(site: str, request: Request) -> Reply:
        raise type(error)(*error.args)

    return fail


def engine(call: Call, *sites: str, patience: Timeouts = QUICK) -> RemoteEngine:
    return RemoteEngine(
        tuple(SiteConnection(site, call, patience) for site in sites or ("alder",)), ignore
    )


def reached(*attendants: tuple[str, SiteAgent], patience: Timeouts = QUICK) -> RemoteEngine:
    return engine(Way(dict(attendants)), *dict(attendants), patience=patience)


def card_of(engine: RemoteEngine, request: Request = ORDER) -> FailureCard:
    with pytest.raises(SiteFailed) as stopped:
        engine.ask(dict.fromkeys(engine.names, request))
    return stopped.value.card


def state_of(attendant: SiteAgent, ask: RequestEnvelope) -> str:
    return unpack(attendant.answer(pack(ask)), ReplyEnvelope).state


@contextmanager
def no_thread_left() -> Iterator[None]:
    """Whatever thread was begun here ends soon."""
    before = set(threading.enumerate())
    yield
    wait_until(lambda: set(threading.enumerate()) <= before)


def wait_until(holds: Callable[[], bool]) -> None:
    until = time.monotonic() + LONG / 2
    while not holds():
        assert time.monotonic() < until
        time.sleep(0.01)


def traits(reply: Reply) -> tuple[Reply, str]:
    """A reply without the time that it took, and without the ledger that holds its time."""
    return replace(reply, seconds=0.0, weights={}, ledger=None), digest(reply.weights)


def flipped(sealed: bytes) -> bytes:
    return sealed[:-1] + bytes([sealed[-1] ^ 1])


def lost(sealed: bytes) -> bytes:
    raise ConnectionError("the cable is out")


def for_the_first(calls: int, harm: Callable[[bytes], bytes]) -> Happens:
    return lambda number, sealed: harm(sealed) if number <= calls else sealed
