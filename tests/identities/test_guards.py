"""Guards that lose nothing change nothing, and a run with guards is one run wherever it goes on.

"Bitwise" means equal digests. Identities 13 and 26 of exact relations; noise and what is owed
survive a stop, and are the same for a server and for a swarm's leader.
"""

from pathlib import Path

import pytest

from grandrounds.core.events import SiteTrained
from grandrounds.core.weights import digest
from grandrounds.runs.loop import run_study as run
from grandrounds.site.model_state import SiteStore
from grandrounds.study.study import Study
from tests.helpers.federation import (
    assert_trained,
    built,
    digests,
    model_of,
    played,
    rows,
    stopped,
    tiny,
)

pytestmark = pytest.mark.slow

UNIFORM = ("method.kind=fedavg", "aggregation.shares=uniform")
CLIENT = (*UNIFORM, "privacy.kind=client")
LOSSY = (*CLIENT, "privacy.clip=0.5", "privacy.noise=0.1", "exchange.kind=int8")


def after_two_rounds(study: Study, folder: Path) -> list[str]:
    """The digest of every site's whole model, which trained."""
    federation = built(study, folder)
    state = played(federation, 2)[-1].state
    found: list[str] = []
    for site in federation.sites.sites:
        model = model_of(site, state)
        assert_trained(site.first_weights(), model)
        found.append(digest(model))
    return found


@pytest.mark.parametrize(
    "guarded",
    [
        (*UNIFORM, "exchange.kind=full"),
        (*UNIFORM, "exchange.kind=topk", "exchange.fraction=1.0"),
        (*CLIENT, "privacy.clip=1e300", "privacy.noise=0.0"),
    ],
)
def test_rows_13_and_26_what_takes_nothing_away_changes_no_bit(
    guarded: tuple[str, ...], tmp_path: Path
):
    plain = after_two_rounds(tiny(*UNIFORM, sites=2), tmp_path / "plain")
    assert after_two_rounds(tiny(*guarded, sites=2), tmp_path / "guarded") == plain


def test_a_swarm_with_guards_is_a_star_with_them(tmp_path: Path):
    star, swarm = tiny(*LOSSY, sites=2), tiny(*LOSSY, "topology.kind=swarm", sites=2)
    played_star = played(built(star, tmp_path / "star"), 2)[-1].state
    federation = built(swarm, tmp_path / "swarm")
    played(federation, 2)
    for site in federation.sites.sites:
        assert digest(SiteStore(site.folder).merged(2).weights) == digest(played_star.weights)


def test_a_run_with_guards_that_was_stopped_ends_as_one_that_was_not(tmp_path: Path):
    """In round 2 a site has trained and saved, and its round is repeated: owed once, not twice."""
    study = tiny(*LOSSY, "rounds=3", sites=2)
    run(study, tmp_path / "whole")
    stopped(
        study,
        tmp_path / "stopped",
        lambda event: isinstance(event, SiteTrained) and event.round == 2,
    )
    again = tmp_path / "stopped"
    run(study, again, resume=True)
    assert digests(again) == digests(tmp_path / "whole")
    full = {row["bytes_full"] for row in rows(again / "rounds.csv")}
    sent = {row["bytes_up"] for row in rows(again / "rounds.csv")}
    assert len(full) == len(sent) == 1
    assert 0.25 <= int(sent.pop()) / int(full.pop()) < 0.27
