"""Stopped at any moment and resumed, every topology and method comes to the same bits."""

from collections.abc import Callable
from pathlib import Path

import pytest

from grandrounds.core.events import Event, RoundFinished, SiteExchanged, SiteTrained, SiteValidated
from grandrounds.runs.loop import run_study as run
from tests.helpers.federation import digests, rows, stopped, tiny
from tests.helpers.grids import with_representatives

pytestmark = pytest.mark.slow

ARMS = {
    "swarm": ("topology.kind=swarm",),
    "swarm, fedopt": ("topology.kind=swarm", "method.kind=fedopt"),
    "swarm, scaffold": ("topology.kind=swarm", "method.kind=scaffold"),
    "swarm, weighted": ("topology.kind=swarm", "topology.leader=weighted"),
    "cyclic, shuffled": ("topology.kind=cyclic", "topology.order=shuffled"),
    "cyclic, travels": ("topology.kind=cyclic", "topology.optimizer=travels"),
    "relay, sites": ("topology.kind=relay", "topology.handover=sites", "method.kind=fedper"),
    "star, scaffold": ("method.kind=scaffold",),
    "star, ditto": ("method.kind=ditto",),
    "star, fedopt": ("method.kind=fedopt",),
    "star, fedrep": ("method.kind=fedrep",),
}


def second(events: tuple[type, ...], stage: str = "") -> Callable[[Event], bool]:
    """The first of these events in round 2."""
    return lambda event: (
        isinstance(event, events)
        and getattr(event, "round", 0) == 2
        and stage in getattr(event, "stage", "")
    )


MOMENTS = {
    "trained": second((SiteTrained,)),
    "merged": second((SiteExchanged,), "merge"),
    "adopted": second((SiteExchanged,), "adopt"),
    "validated": second((SiteValidated,)),
    "finished": second((RoundFinished,)),
    "in round 3": lambda event: isinstance(event, SiteTrained) and event.round == 3,
}
HERE = [
    (arm, moment)
    for arm in ARMS
    for moment in MOMENTS
    if arm.startswith(("swarm", "relay")) or moment not in ("merged", "adopted")
]

REPRESENTATIVES = (  # each topology, and each moment
    ("swarm", "merged"),
    ("swarm, fedopt", "adopted"),
    ("cyclic, travels", "trained"),
    ("relay, sites", "merged"),
    ("star, scaffold", "validated"),
    ("star, ditto", "finished"),
    ("star, fedrep", "in round 3"),
)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Runs that were never stopped, each made once."""
    folder = tmp_path_factory.mktemp("whole")

    def of(arm: str) -> Path:
        if not (folder / arm).exists():
            run(tiny(*ARMS[arm], sites=2), folder / arm)
        return folder / arm

    return of


@pytest.mark.parametrize(("arm", "moment"), with_representatives(HERE, REPRESENTATIVES))
def test_a_resumed_run_has_the_bits_of_one_that_never_stopped(
    tmp_path: Path, whole: Callable[[str], Path], arm: str, moment: str
):
    study = tiny(*ARMS[arm], sites=2)
    stopped(study, tmp_path / "parts", MOMENTS[moment])
    run(study, tmp_path / "parts", resume=True)
    assert len(digests(whole(arm))) == 3
    assert digests(tmp_path / "parts") == digests(whole(arm))
    assert rows(tmp_path / "parts" / "scores.csv") == rows(whole(arm) / "scores.csv")
