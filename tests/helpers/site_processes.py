"""Sites that are elsewhere: each in a process of its own, with letters between them."""

from collections.abc import Generator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from multiprocessing.connection import Client, Connection, Listener
from multiprocessing.process import BaseProcess
from pathlib import Path
from threading import Thread
from typing import TypeAlias, cast

from grandrounds.core.device import deterministic
from grandrounds.core.failures import Disclosure
from grandrounds.core.journal import Journal
from grandrounds.core.processes import end_with_parent
from grandrounds.engines.in_process import InProcessEngine
from grandrounds.engines.remote import RemoteEngine, SiteConnection, Timeouts, ready
from grandrounds.engines.remote_site import SiteAgent
from grandrounds.runs.build import host_sites, make_blueprint, make_federation
from grandrounds.runs.costs import plan_run
from grandrounds.runs.folder import lock_folder
from grandrounds.runs.listeners import EventBus
from grandrounds.runs.loop import RunLoop, run_recorded
from grandrounds.runs.remote import study_guard
from grandrounds.study.study import Study
from tests.helpers.processes import loaded

Link: TypeAlias = "Connection[object, object]"
CALL, MAIL = b"c", b"m"


@contextmanager
def one_site(
    study: Study, folder: Path, site: str
) -> Generator[tuple[InProcessEngine, bytes], None, None]:
    """One site of a study, opened as its hospital would, and what it says of itself."""
    with host_sites(study, (), folder, 1, (site,)) as simulation:
        yield simulation, site.encode()


@dataclass
class House:
    """In a process of its own: answers for one site, of one study after the other."""

    site: str
    listener: Listener
    ports: Mapping[str, int]
    _attendant: list[SiteAgent] = field(default_factory=list[SiteAgent])

    def open(self, study: Study, folder: Path) -> None:
        """Host the site of this study, and of none before."""
        self.close()
        host, told = one_site(study, folder, self.site), Disclosure(self.site, study.names)
        guard = partial(study_guard, study)
        self._attendant.append(SiteAgent(host, self._post, told, guard=guard))

    def close(self) -> None:
        """Host no site."""
        while self._attendant:
            self._attendant.pop().close()

    def serve(self) -> None:
        """Answer whoever calls, each in a thread of its own."""
        while True:
            caller = self.listener.accept()
            Thread(target=self._answer, args=(caller,), daemon=True).start()

    def _answer(self, caller: Link) -> None:
        [attendant] = self._attendant
        with caller, suppress(ConnectionError, EOFError):
            letter = caller.recv_bytes()
            answers = {CALL: attendant.answer, MAIL: attendant.receive_update}
            caller.send_bytes(answers[letter[:1]](letter[1:]))

    def _post(self, peer: str, letter: bytes) -> bytes:
        return carried(self.ports[peer], MAIL + letter, 10.0)


def carried(port: int, letter: bytes, timeout: float) -> bytes:
    """Bring a letter to who listens at this port, and the answer back. Raises `ConnectionError`."""
    with Client(("127.0.0.1", port)) as line:
        line.send_bytes(letter)
        if not line.poll(timeout):
            raise ConnectionError(f"nothing came in {timeout:g} s")
        try:
            return line.recv_bytes()
        except EOFError:
            raise ConnectionError("hung up") from None


def _live(site: str, link: Link) -> None:
    """Be the process of a house, until the link to its parent is closed."""
    end_with_parent()
    with Listener(("127.0.0.1", 0), backlog=16) as listener, suppress(EOFError):
        _, port = cast(tuple[str, int], listener.address)
        link.send(port)
        house = House(site, listener, cast(Mapping[str, int], link.recv()))
        Thread(target=house.serve, daemon=True).start()
        while True:
            house.open(*cast(tuple[Study, Path], link.recv()))
            link.send(site)


@dataclass(frozen=True)
class Town:
    """Houses in processes of their own, and how to reach them."""

    links: Mapping[str, Link]
    ports: Mapping[str, int]

    def open(self, study: Study, folder: Path) -> tuple[SiteConnection, ...]:
        """Let every house host its site of this study, and give the lines to them."""
        for site in study.trainers:
            self.links[site].send((study, folder))
        for site in study.trainers:
            self.links[site].recv()
        return tuple(
            SiteConnection(site, self._call, Timeouts(poll=0.2)) for site in study.trainers
        )

    def _call(self, site: str, sealed: bytes, timeout: float) -> bytes:
        return carried(self.ports[site], CALL + sealed, timeout)


@contextmanager
def town(sites: Sequence[str]) -> Generator[Town, None, None]:
    """Start a process for each site; in the end all are gone."""
    with ExitStack() as stack:
        links = {site: stack.enter_context(_link(site, stack)) for site in sites}
        ports = {site: cast(int, link.recv()) for site, link in links.items()}
        for link in links.values():
            link.send(ports)
        yield Town(links, ports)


def _link(site: str, stack: ExitStack) -> Link:
    context = loaded()
    ours, theirs = context.Pipe()
    process = context.Process(target=_live, args=(site, theirs), daemon=True)
    process.start()
    theirs.close()
    stack.callback(partial(_ended, process))
    return ours


def _ended(process: BaseProcess) -> None:
    process.kill()
    process.join()
    process.close()


def run_elsewhere(study: Study, folder: Path, lines: Sequence[SiteConnection]) -> None:
    """Run a study with sites at the end of lines."""
    machine = study.machine()
    with lock_folder(folder, study, resume=False), deterministic(machine):
        assert ready(lines) == {line.site: line.site.encode() for line in lines}
        teller = EventBus((Journal(folder / "journal.jsonl"),), study)
        remote = RemoteEngine(tuple(lines), teller.on_reply, teller.on_missing)
        federation = make_federation(make_blueprint(plan_run(study), machine), remote)
        run_recorded(RunLoop(study, folder, federation, machine, teller, resumes=False))
