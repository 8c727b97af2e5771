"""Row 17: one worker is many workers; the number of processes leaves no trace in the numbers."""

from pathlib import Path

import pytest

from grandrounds.algorithms.topology import RoundResult
from grandrounds.core.weights import digest
from grandrounds.engines.process_pool import ProcessPoolEngine
from grandrounds.runs.build import distribute
from grandrounds.site.site import Site
from grandrounds.study.study import Study
from tests.helpers.federation import NOBODY, assert_trained, built, model_of, played, tiny
from tests.helpers.grids import with_representatives

ROUNDS = 2
ARMS = {
    "fedavg": "star",
    "pflsynth": "star",
    "fedavg over swarm": "swarm",
    "fedavg over cyclic": "cyclic",
    "fedavg over split": "split",
}


def spread(study: Study, folder: Path, workers: int) -> tuple[list[RoundResult], tuple[Site, ...]]:
    """The rounds that so many processes play, and the sites as this process finds them on disk."""
    federation = built(study, folder)
    with distribute(federation, study, (), folder, NOBODY, processes=workers) as shared:
        if workers > 1:
            assert isinstance(shared.sites, ProcessPoolEngine)
            assert len(shared.sites.workers) == workers
        return played(shared, ROUNDS), federation.sites.sites


def traces(outcomes: list[RoundResult]) -> list[list[str]]:
    """What each round comes to: the shared model, and what each site sent and keeps."""
    return [
        [o.state.fingerprint, *(f"{r.site} {r.digest} {digest(r.weights)}" for r in o.replies)]
        for o in outcomes
    ]


@pytest.mark.slow
@pytest.mark.parametrize("arm", with_representatives(ARMS, ("pflsynth",)))
def test_row_17_one_worker_is_many_workers(tmp_path: Path, arm: str):
    method, topology = arm.split()[0], ARMS[arm]
    cut = ("topology.cut=encoder.2",) if topology == "split" else ()
    overrides = (f"method.kind={method}", f"topology.kind={topology}", *cut, "training.threads=1")
    study = tiny(*overrides, sites=3)
    alone, sites = spread(study, tmp_path / "one", 1)
    shared, _ = spread(study, tmp_path / "two", 2)
    assert traces(shared) == traces(alone)
    for site in sites:
        assert_trained(site.first_weights(), model_of(site, alone[-1].state))
