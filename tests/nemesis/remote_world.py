"""A run between real processes: the server's coordinator and every site, with a line between them.

They sign with real keys, and listen on 127.0.0.1; only NVFlare is missing.
"""

import json
import os
import signal
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from multiprocessing.connection import Connection, Listener
from multiprocessing.process import BaseProcess
from pathlib import Path
from threading import Thread, Timer
from traceback import format_exc
from typing import Any, TypeAlias, cast

from grandrounds.core.errors import BadInput, RunFailed
from grandrounds.core.failures import Disclosure
from grandrounds.core.processes import end_with_parent
from grandrounds.core.weights import digest
from grandrounds.engines.remote import RemoteEngine, Timeouts
from grandrounds.engines.remote_site import SiteAgent
from grandrounds.runs.ledgers import site_ledger
from grandrounds.runs.remote import identity_of, run_remotely, serve_site, study_guard
from grandrounds.study.acceptance import accept, save_acceptance
from grandrounds.study.file import fingerprint
from grandrounds.study.study import Study
from tests.helpers.certificates import Authority, new_key
from tests.helpers.processes import loaded
from tests.nemesis import harm
from tests.nemesis.faults import SERVER, SILENCE, Fault, Harm, Schedule
from tests.nemesis.line import ASK, MAIL, Line, carried
from tests.nemesis.story import KILLED, LIMIT, Watcher
from tests.nemesis.studies import ARMS, study_of

Link: TypeAlias = "Connection[object, object]"
NAMES = ("alder", "birch", "cedar")
PATIENT = Timeouts(poll=0.5, silence=SILENCE, start=30.0, connect_every=0.05, pause=0.05)
CRASHED = 70  # an exit code that no run has: an error that nobody foresaw
RUN = "run"  # every party's folder of the run has this name


@dataclass(frozen=True)
class Kits:
    """The keys of a federation: each party's own, and for sites an old and a foreign one."""

    folder: Path

    def root(self, party: str, kit: str = "own") -> Path:
        """Return the authority's certificate beside a party's key."""
        return self.folder / kit / party / "rootCA.pem"

    def accepted(self, site: str) -> Path:
        return self.folder / "own" / site / "local"


def make_kits(folder: Path) -> Kits:
    """Issue kits: an old one has ended, a foreign one is of an authority of the same name."""
    kits = Kits(folder)
    ours, others = Authority("authority", new_key()), Authority("authority", new_key())
    for party in (SERVER, *NAMES):
        _issue(kits.root(party), party, ours, ours, (-1, 1))
        if party != SERVER:
            _issue(kits.root(party, "old"), party, ours, ours, (-9, -1))
            _issue(kits.root(party, "foreign"), party, others, ours, (-1, 1))
    for study in map(study_of, ARMS):
        for site in study.trainers:
            own = kits.root(site).parent
            word = accept(fingerprint(study), own / "client.key", own / "client.crt")
            save_acceptance(word, kits.accepted(site))
    return kits


def _issue(
    root: Path, party: str, signer: Authority, trusted: Authority, days: tuple[int, int]
) -> None:
    key, certificate = signer.issue(party, root.parent, days)
    trusted.root(root)
    if party == SERVER:
        key.rename(key.with_name("server.key"))
        certificate.rename(certificate.with_name("server.crt"))


@dataclass(frozen=True)
class Place:
    """What a party's process is told: its run, its keys, the line, and its harms."""

    party: str
    study: Study
    folder: Path
    root: Path
    accepted: Path
    line: int
    log: Path
    marks: Path
    harms: tuple[Harm, ...] = ()

    def settle(self) -> None:
        """Be this party in a process of its own: what it prints is in its log."""
        end_with_parent()
        descriptor = os.open(self.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(descriptor, 1)
        os.dup2(descriptor, 2)
        harm.install(self.harms, self.marks)


def be_site(place: Place, link: Link) -> None:
    """Answer for one site until the link is closed, as an NVFlare executor does."""
    place.settle()
    study, site = place.study, place.party
    identity = identity_of(fingerprint(study), place.folder, place.root, "client")

    def mail(peer: str, letter: bytes) -> bytes:
        return carried(place.line, (MAIL, peer, letter), 3.0)

    with Listener(("127.0.0.1", 0), backlog=64) as listener:
        agent = SiteAgent(
            serve_site(study, site, (), place.folder, place.accepted),
            mail,
            Disclosure(site, study.names),
            identity=identity,
            coordinator=SERVER,
            guard=partial(study_guard, study),
            ledger=site_ledger(study, place.folder, site, identity),
        )
        Thread(target=_answer_all, args=(listener, agent), daemon=True).start()
        link.send(cast(tuple[str, int], listener.address)[1])
        with suppress(EOFError):
            link.recv()
    os._exit(0)


def _answer_all(listener: Listener, agent: SiteAgent) -> None:
    with suppress(OSError):
        while True:
            Thread(target=_answer, args=(listener.accept(), agent), daemon=True).start()


def _answer(caller: Link, agent: SiteAgent) -> None:
    with caller, suppress(ConnectionError, EOFError):
        topic, letter = cast(tuple[str, bytes], caller.recv())
        answers = {ASK: agent.answer, MAIL: agent.receive_update}
        caller.send_bytes(answers[topic](letter))


def be_server(place: Place, resume: bool, link: Link) -> None:
    """Run a study to its end, as an NVFlare controller does, and say how it ended."""
    place.settle()
    _note_what_counts(place.log.with_name("counted.jsonl"))

    def call(site: str, letter: bytes, timeout: float) -> bytes:
        return carried(place.line, (ASK, site, letter), timeout)

    try:
        run_remotely(
            place.study, place.folder, call, patience=PATIENT, root=place.root, resume=resume
        )
        link.send((0, ""))
    except BadInput as error:
        link.send((2, str(error)))
    except RunFailed as error:
        link.send((1, str(error)))
    except Exception:
        link.send((CRASHED, format_exc()))


def _note_what_counts(path: Path) -> None:
    """Write down every reply that an engine passes on, which is all that a topology sees."""
    ask = RemoteEngine.ask

    def noted(self: RemoteEngine, requests: Mapping[str, Any], **options: Any) -> Any:
        replies = ask(self, requests, **options)
        lines = [
            {
                "asked": type(requests[reply.site]).__name__.lower(),
                "round": reply.round,
                "site": reply.site,
                "digest": digest(reply.weights) if reply.weights else "",
            }
            for reply in replies
        ]
        with path.open("a") as file:
            file.writelines(json.dumps(line) + "\n" for line in lines)
        return replies

    RemoteEngine.ask = noted  # pyright: ignore[reportAttributeAccessIssue]


@dataclass
class RemoteWorld:
    """The processes of one run, which the line may kill, stop and start anew."""

    schedule: Schedule
    folder: Path
    kits: Kits
    folders: Mapping[str, Path] = field(init=False)
    _processes: dict[str, BaseProcess] = field(default_factory=dict[str, BaseProcess])
    _ports: dict[str, int] = field(default_factory=dict[str, int])
    _links: list[Link] = field(default_factory=list[Link])
    _timers: list[Timer] = field(default_factory=list[Timer])
    _harms: tuple[Harm, ...] = ()
    crowds: list[tuple[int, str]] = field(default_factory=list[tuple[int, str]])

    def __post_init__(self) -> None:
        self.study = study_of(self.schedule.arm)
        self.folders = {p: self.folder / p / RUN for p in (SERVER, *self.study.trainers)}
        for folder in self.folders.values():
            folder.parent.mkdir(parents=True)
        self._line = Line(self, self.schedule.troubles)
        self._harms = self.schedule.harms
        self._watcher = Watcher(self.schedule.harms, self.folder)
        self._watcher.__enter__()

    def close(self) -> None:
        self._end_all()
        self._watcher.__exit__()
        self._line.close()

    def struck(self) -> Sequence[Fault]:
        return [*self._watcher.struck(), *self._line.struck]

    def counted(self) -> Sequence[Mapping[str, object]]:
        path = self.folder / SERVER / "counted.jsonl"
        lines = path.read_text().splitlines() if path.exists() else []
        return [json.loads(line) for line in lines]

    def attempt(self, *, resume: bool) -> tuple[int, str]:
        """Start all sites and the server anew, as a job of NVFlare does, and wait for its end."""
        if resume:
            self._harms = ()
            self._line.next_attempt()
        for site in self.study.trainers:
            self._start_site(site)
        with (self.folder / SERVER / "counted.jsonl").open("a") as file:
            file.write(json.dumps({"asked": "attempt"}) + "\n")
        link = self._start(SERVER, be_server, SERVER, resume)
        end = self._outcome(SERVER, link)
        self._end_all()
        return end

    def _outcome(self, name: str, link: Link) -> tuple[int, str]:
        process = self._processes[name]
        try:
            if not link.poll(LIMIT):
                return CRASHED, f"{name} has not ended in {LIMIT:g} s"
            return cast(tuple[int, str], link.recv())
        except (EOFError, OSError):
            process.join()
            return KILLED, "killed"

    def _place(self, party: str, kit: str = "own") -> Place:
        return Place(
            party=party,
            study=self.study,
            folder=self.folders[party],
            root=self.kits.root(party, kit),
            accepted=self.kits.accepted(party),
            line=self._line.port,
            log=self.folder / party / "log.txt",
            marks=self.folder,
            harms=tuple(each for each in self._harms if each.party == party),
        )

    def _start(
        self, name: str, target: Any, party: str, *arguments: object, kit: str = "own"
    ) -> Link:
        ours, theirs = loaded().Pipe()
        process = loaded().Process(
            target=target, args=(self._place(party, kit), *arguments, theirs), daemon=True
        )
        process.start()
        theirs.close()
        self._processes[name] = process
        self._links.append(ours)
        return ours

    def _start_site(self, site: str, kit: str = "own") -> None:
        link = self._start(site, be_site, site, kit=kit)
        with suppress(EOFError):  # it was killed already
            self._ports[site] = cast(int, link.recv())

    def port(self, site: str) -> int:
        return self._ports[site]

    def kill(self, party: str) -> None:
        """Kill a party's process, as kill -9 does."""
        self._processes[party].kill()
        self._processes[party].join()

    def restart(self, site: str, kit: str) -> None:
        """Kill a site's process, and start another one from this kit."""
        self.kill(site)
        self._start_site(site, kit)

    def stop(self, party: str, seconds: float) -> None:
        """Let a party's process stand still for a while."""
        pid = self._processes[party].pid
        assert pid
        os.kill(pid, signal.SIGSTOP)
        timer = Timer(seconds, self._go_on, (pid,))
        timer.daemon = True
        timer.start()

    def _go_on(self, pid: int) -> None:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGCONT)

    def crowd(self, party: str) -> None:
        """Start another process of the same party in the same folder."""
        if party == SERVER:
            link = self._start("another server", be_server, SERVER, True)
            Thread(target=self._note_crowd, args=("another server", link), daemon=True).start()
        else:
            self._start(f"another {party}", be_site, party)
            time.sleep(0.3)

    def _note_crowd(self, name: str, link: Link) -> None:
        self.crowds.append(self._outcome(name, link))

    def _end_all(self) -> None:
        for process in self._processes.values():
            process.kill()
            process.join()
        self._processes.clear()
        for link in self._links:
            link.close()
        self._links.clear()
