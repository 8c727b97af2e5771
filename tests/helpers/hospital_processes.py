"""A coordinator and hospitals in processes of their own, each with packages and keys of its own.

They read a job's study as NVFlare's processes do; letters go over sockets.
"""

import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from functools import partial
from hashlib import sha256
from multiprocessing.connection import Client, Connection, Listener
from pathlib import Path
from threading import Thread
from typing import TypeAlias, cast

from grandrounds.core.errors import BadInput, RunFailed
from grandrounds.core.failures import Disclosure
from grandrounds.core.processes import end_with_parent
from grandrounds.engines.remote import Timeouts
from grandrounds.engines.remote_site import SiteAgent
from grandrounds.runs.ledgers import site_ledger
from grandrounds.runs.remote import (
    closed_site,
    identity_of,
    run_remotely,
    serve_site,
    study_guard,
)
from grandrounds.study.installed import look_up, read_accepted
from tests.helpers.certificates import Authority, new_key
from tests.helpers.processes import loaded
from tests.helpers.remote_sites import nowhere

SERVER = "server"
PATIENT = Timeouts(poll=0.2, silence=60.0, start=60.0, connect_every=0.05, pause=0.05)
Link: TypeAlias = "Connection[object, object]"


@dataclass(frozen=True)
class PartyPlace:
    """One party: its packages, its keys and acceptances, and the job's study as it came there."""

    name: str
    folder: Path

    @property
    def packages(self) -> Path:
        return self.folder / "packages"

    @property
    def root(self) -> Path:
        return self.folder / "rootCA.pem"

    @property
    def study(self) -> Path:
        return self.folder / "study.toml"

    @property
    def run(self) -> Path:
        return self.folder / "run"

    def settle(self) -> None:
        """Be this party in this process: its own packages are found, and no other party's."""
        end_with_parent()
        others = [each for each in sys.path if Path(each).name != self.packages.name]
        sys.path[:] = [str(self.packages), *others]


def party_places(folder: Path, names: Sequence[str]) -> Mapping[str, PartyPlace]:
    """Issue keys to the server and the sites of a federation."""
    authority = Authority("authority", new_key())
    places = {name: PartyPlace(name, folder / name) for name in (SERVER, *names)}
    for name, place in places.items():
        key, certificate = authority.issue(name, place.folder)
        authority.root(place.root)
        place.packages.mkdir()
        if name == SERVER:
            key.rename(key.with_name("server.key"))
            certificate.rename(certificate.with_name("server.crt"))
    return places


def _be_site(place: PartyPlace, link: Link) -> None:
    """Answer for a site until the link is closed."""
    place.settle()
    with Listener(("127.0.0.1", 0), backlog=16) as listener, suppress(EOFError):
        agent = _agent(place)
        Thread(target=_answer_all, args=(listener, agent), daemon=True).start()
        link.send(cast(tuple[str, int], listener.address)[1])
        link.recv()


def _agent(place: PartyPlace) -> SiteAgent:
    """As NVFlare's executor opens a site."""
    text = sha256(place.study.read_bytes()).hexdigest()
    identity = identity_of(text, place.run, place.root, "client")
    agent = partial(SiteAgent, send_to_peer=nowhere, identity=identity, coordinator=SERVER)
    try:
        study = read_accepted(place.study, site=place.name, accepted=place.folder, root=place.root)
    except BadInput as refusal:
        return agent(closed_site(refusal), disclosure=Disclosure(place.name))
    return agent(
        serve_site(study, place.name, (), place.run, place.folder),
        disclosure=Disclosure(place.name, study.names),
        guard=partial(study_guard, study),
        ledger=site_ledger(study, place.run, place.name, identity),
    )


def _answer_all(listener: Listener, agent: SiteAgent) -> None:
    with suppress(OSError):
        while True:
            Thread(target=_answer, args=(listener.accept(), agent), daemon=True).start()


def _answer(caller: Link, agent: SiteAgent) -> None:
    with caller, suppress(ConnectionError, EOFError):
        caller.send_bytes(agent.answer(caller.recv_bytes()))


def _be_server(place: PartyPlace, ports: Mapping[str, int], link: Link) -> None:
    """Run a job's study to its end, and say how it ended."""
    place.settle()

    def call(site: str, letter: bytes, timeout: float) -> bytes:
        with Client(("127.0.0.1", ports[site])) as line:
            line.send_bytes(letter)
            if not line.poll(timeout):
                raise ConnectionError(f"nothing came in {timeout:g} s")
            return line.recv_bytes()

    try:
        study = look_up(place.study).read()
        run_remotely(study, place.run, call, patience=PATIENT, root=place.root)
        link.send("")
    except (BadInput, RunFailed) as error:
        link.send(str(error))


def run_between(places: Mapping[str, PartyPlace]) -> str:
    """Run the job at all places, and say why it did not end well; empty where it did."""
    with ExitStack() as stack:
        sites = [place for name, place in places.items() if name != SERVER]
        links = {place.name: _begun(stack, _be_site, place) for place in sites}
        ports = {name: cast(int, link.recv()) for name, link in links.items()}
        return str(_begun(stack, _be_server, places[SERVER], ports).recv())


def _begun(stack: ExitStack, target: Callable[..., None], *arguments: object) -> Link:
    ours, theirs = loaded().Pipe()
    process = loaded().Process(target=target, args=(*arguments, theirs), daemon=True)
    process.start()
    theirs.close()
    stack.callback(process.join)
    stack.callback(process.kill)
    return ours
