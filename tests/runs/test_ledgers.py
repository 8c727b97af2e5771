"""Every engine writes ledgers that hold against each other; between machines they are signed."""

import shutil
from collections.abc import Generator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from threading import Lock

import pytest

from grandrounds.core.errors import LedgerBroken
from grandrounds.core.failures import Disclosure
from grandrounds.core.ledger import DELIVER, read_ledger
from grandrounds.core.run_folder import RunFolder
from grandrounds.engines.remote import Call, Timeouts
from grandrounds.engines.remote_site import SiteAgent
from grandrounds.report.analysis.ledgers import check_ledgers
from grandrounds.runs.ledgers import site_ledger
from grandrounds.runs.loop import run_study
from grandrounds.runs.remote import identity_of, run_remotely, serve_site, study_guard
from grandrounds.study.acceptance import accept, save_acceptance
from grandrounds.study.file import fingerprint
from grandrounds.study.identity import signer_then
from grandrounds.study.study import Study
from tests.helpers.certificates import Authority, new_key
from tests.helpers.federation import tiny

PATIENT = Timeouts(poll=100.0, silence=600.0)


@dataclass(frozen=True)
class Kits:
    """Keys and certificates of a federation: a folder for each party."""

    folder: Path
    authority: Authority

    def root(self, name: str) -> Path:
        return self.folder / name / "startup" / "rootCA.pem"

    def make(self, name: str, party: str) -> None:
        root = self.root(name)
        key, certificate = self.authority.issue(name, root.parent)
        for path in (key, certificate):
            if party == "server":
                path.rename(path.with_name(f"server{path.suffix}"))
        self.authority.root(root)


@contextmanager
def federation(study: Study, kits: Kits, run: str) -> Generator[Call, None, None]:
    """The sites of a study, each with its own kit and folder, and the way to them."""
    agents, alone = dict[str, SiteAgent](), Lock()

    def mail(peer: str, packed: bytes) -> bytes:
        return agents[peer].receive_update(packed)

    def call(site: str, packed: bytes, timeout: float) -> bytes:
        with alone:
            return agents[site].answer(packed)

    with ExitStack() as stack:
        for site in study.trainers:
            root, folder = kits.root(site), kits.folder / site / run
            accepted = kits.folder / site / "local"
            own = (root.with_name("client.key"), root.with_name("client.crt"))
            save_acceptance(accept(fingerprint(study), *own), accepted)
            identity = identity_of(fingerprint(study), folder, root, "client")
            agents[site] = SiteAgent(
                serve_site(study, site, (), folder, accepted),
                mail,
                Disclosure(site, study.names),
                identity=identity,
                coordinator="server",
                guard=partial(study_guard, study),
                ledger=site_ledger(study, folder, site, identity),
            )
            stack.callback(agents[site].close)
            agents[site]._answer.result()
        yield call


@pytest.mark.full
@pytest.mark.slow
def test_between_machines_each_message_is_signed_and_told_by_both_sides(tmp_path: Path):
    """A swarm: tensors go from site to site, and receipts to the coordinator."""
    study = tiny("method.kind=fedavg", "topology.kind=swarm", "rounds=1", sites=2)
    kits = Kits(tmp_path, Authority("authority", new_key()))
    kits.make("server", "server")
    for site in study.trainers:
        kits.make(site, "client")
    root, folder = kits.root("server"), tmp_path / "server" / "run"
    with federation(study, kits, "run") as call:
        run_remotely(study, folder, call, patience=PATIENT, root=root)
    own = [RunFolder(tmp_path / n / "run").site(n).ledger for n in study.trainers]
    verify = partial(signer_then, root=root)
    found = check_ledgers(folder, verify, own)
    assert found.absent == ()
    assert set(found.unreceived.values()) == {0}
    assert min(found.matched.values()) >= 5
    assert all(ledger.signed >= 5 for ledger in found.ledgers)
    told = [line.entry for path in own for line in read_ledger(path)]
    assert {entry.asked for entry in told} >= {"session", "listing", "open", "train", DELIVER}
    own[1].write_bytes(b"".join(own[1].read_bytes().splitlines(True)[:-1]))
    with pytest.raises(LedgerBroken, match="so its end was cut"):
        check_ledgers(folder, verify, own)


@pytest.mark.slow
def test_a_run_that_goes_on_and_workers_write_into_one_chain(tmp_path: Path):
    study = tiny("method.kind=fedavg", "training.schedule=constant", "rounds=1", sites=2)
    folder = tmp_path / "run"
    run_study(study, folder, tests=False)
    longer = tiny("method.kind=fedavg", "training.schedule=constant", "rounds=2", sites=2)
    shutil.copytree(folder, tmp_path / "before")
    run_study(longer, folder, resume=True, workers=2)
    found = check_ledgers(folder, signer_then)
    assert found.matched.keys() == set(study.trainers)
    for name in study.trainers:
        path = RunFolder(folder).site(name).ledger
        before = RunFolder(tmp_path / "before").site(name).ledger
        assert path.read_bytes().startswith(before.read_bytes())
        sessions = [line for line in read_ledger(path) if line.entry.asked == "session"]
        assert len(sessions) == 2
