"""What a study asks of its sites passes their own guards, and every reply the coordinator's.

As between hospitals, but in this process; the grid in NVFlare's simulator plays every method over
every topology so.
"""

from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from threading import Lock

import pytest

from grandrounds.core.failures import Disclosure
from grandrounds.engines.remote import Call, Timeouts
from grandrounds.engines.remote_site import SiteAgent
from grandrounds.runs.loop import run_study as run
from grandrounds.runs.remote import run_remotely, serve_site, study_guard
from grandrounds.site.audit import AuditEntry
from grandrounds.study.checks import complete
from grandrounds.study.study import Study
from tests.golden.test_golden import ARMS
from tests.helpers.federation import digests, tiny
from tests.helpers.grids import with_representatives

pytestmark = pytest.mark.slow

FURTHER: dict[str, tuple[str, ...]] = {
    "a quorum": ("method.kind=fedavg", "topology.require=1"),
    "fine-tuning": ("method.kind=fedavg", "training.fine_tune=1"),
    "first weights apart": ("method.kind=fedavg", "training.first_broadcast=false"),
    "steps in proportion": (
        *("method.kind=fedavg", "topology.kind=cyclic", "topology.turn=steps"),
        *("topology.length=2", "topology.proportional=true"),
    ),
    "a weighted swarm": ("method.kind=fedavg", "topology.kind=swarm", "topology.leader=weighted"),
    "a relay with a quorum": (
        *("method.kind=fedavg", "topology.kind=relay", "topology.groups=2", "topology.require=1"),
    ),
    "a cut in a U": (
        *("method.kind=fedavg", "topology.kind=split"),
        *("topology.cut=encoder.2", "topology.back=decoder.0"),
    ),
    "own negatives": ("method.kind=fedmri", "method.negatives=own"),
    "the best of all": ("method.kind=fedmedgan", "method.broadcast=best"),
    "8 bits": ("method.kind=fedavg", "exchange.kind=int8"),
    "the largest moves, with noise, over a swarm": (
        *("method.kind=fedavg", "topology.kind=swarm", "exchange.kind=topk"),
        *("exchange.fraction=0.1", "privacy.kind=client", "privacy.clip=1.0"),
        *("privacy.noise=0.1", "aggregation.shares=uniform"),
    ),
    "16 bits beside a set": (*("method.kind=scaffold", "exchange.kind=bf16"),),
    "fp64": ("method.kind=fedavg", "training.precision=fp64"),
    "norms that are reset": ("method.kind=fedbn", "task.norm=batch", "training.norm_buffers=reset"),
}
ARM = (
    *("scaffold", "mrmtl", "fedmri", "fedgan@swarm", "cyclic-travels", "splitfed1"),
    *("relay-sites", "measured", "pflsynth@swarm"),
)
KEPT = (
    "scaffold",
    "mrmtl",
    "fedgan@swarm",
    "relay-sites",
    "splitfed1",
    "steps in proportion",
    "a quorum",
    "the largest moves, with noise, over a swarm",
)
PATIENT = Timeouts(poll=100.0, silence=600.0)  # one site works at a time: they share a generator


CASES = {name: ARMS[name] for name in ARM} | FURTHER


@contextmanager
def guarded(study: Study, folder: Path, heard: list[AuditEntry]) -> Generator[Call, None, None]:
    """The sites of a study, each behind its guard, and the way to them."""
    agents, alone = dict[str, SiteAgent](), Lock()

    def mail(peer: str, packed: bytes) -> bytes:
        return agents[peer].receive_update(packed)

    def call(site: str, packed: bytes, timeout: float) -> bytes:
        with alone:
            return agents[site].answer(packed)

    try:
        for site in study.trainers:
            host = serve_site(study, site, (), folder / site)
            told = Disclosure(site, study.names)
            guard = partial(study_guard, study)
            agents[site] = SiteAgent(host, mail, told, guard=guard, audit=heard.append)
            agents[site]._answer.result()
        yield call
    finally:
        for agent in agents.values():
            agent.close()


@pytest.mark.full
def test_a_site_that_joins_is_asked_from_its_round_on(tmp_path: Path):
    study, heard = tiny("method.kind=ditto", "rounds=3", sites=3), list[AuditEntry]()
    alder, birch, cedar = study.site
    study = complete(replace(study, site=(alder, birch, replace(cedar, joins=2))))
    with guarded(study, tmp_path / "sites", heard) as call:
        run_remotely(study, tmp_path / "run", call, patience=PATIENT)
    run(study, tmp_path / "plain")
    assert digests(tmp_path / "run") == digests(tmp_path / "plain")
    assert [entry for entry in heard if entry.refused or entry.failed] == []


@pytest.mark.parametrize("name", with_representatives(list(CASES), KEPT))
def test_guards_let_a_study_pass_and_change_no_bit_of_it(name: str, tmp_path: Path):
    study, heard = tiny(*CASES[name], "rounds=2", sites=2), list[AuditEntry]()
    with guarded(study, tmp_path / "sites", heard) as call:
        run_remotely(study, tmp_path / "run", call, patience=PATIENT)
    run(study, tmp_path / "plain")
    assert digests(tmp_path / "run") == digests(tmp_path / "plain")
    assert len(digests(tmp_path / "run")) == 2
    assert [entry for entry in heard if entry.refused or entry.failed] == []
    assert [entry for entry in heard if entry.asked in ("train", "backward") and entry.tensors]
