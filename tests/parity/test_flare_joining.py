"""A third hospital joins a run of two on a real federation, with a key of its own."""

from dataclasses import replace
from pathlib import Path

import pytest

from grandrounds.core.events import RunResumed, SiteJoined
from grandrounds.runs.loop import run_study as run
from grandrounds.study.checks import complete
from tests.helpers.command import started
from tests.helpers.federation import digests, rows, tiny
from tests.helpers.flare_federation import (
    LONG,
    SERVER,
    commanded,
    harmful,
    needs_flare,
    provisioned,
    wait_until,
    written,
)

pytestmark = [pytest.mark.engine, pytest.mark.slow, pytest.mark.full, needs_flare]


def told(*words: str | Path) -> None:
    done = commanded(*words)
    assert done.code == 0, done.err


def test_a_hospital_joins_from_the_newest_round_and_the_numbers_are_those_of_one_process(
    tmp_path: Path,
):
    overrides = ("rounds=3", "method.kind=ditto")
    two, three = tiny(*overrides, sites=2), tiny(*overrides, sites=3)
    alder, birch, cedar = three.site
    three = complete(replace(three, site=(alder, birch, replace(cedar, joins=2))))
    marker = tmp_path / "held"
    with provisioned(two, tmp_path / "town") as town:
        admin = ("--kit", town.kit("admin"))
        town.start(SERVER, "alder")
        town.start("birch", harm=harmful(tmp_path / "harm", f"hold(2, {str(marker)!r})"))
        town.accept(two)
        with started("federation", "submit", written(two, tmp_path), *admin, "--json") as job:
            wait_until(lambda: marker.exists() or job.poll() is not None)
            town.kill("birch")
            job.communicate(timeout=LONG)
        town.start("birch")

        told("site", "request", "cedar", "--out", tmp_path / "key")
        made = ("--authority", town.kit("authority"), "--out", town.kit("cedar"))
        told("federation", "add", tmp_path / "key" / "cedar.csr", *made)
        told("site", "install", town.kit("cedar"), "--key", tmp_path / "key")
        town.start("cedar")
        town.accept(three)
        done = town.submit(three, resume=True)
        assert done.code == 0, done.err

        run(three, tmp_path / "awaited")
        assert digests(town.run(three)) == digests(tmp_path / "awaited")
        assert rows(town.run(three) / "scores.csv") == rows(tmp_path / "awaited" / "scores.csv")
        assert RunResumed(1) in town.told(three)
        assert SiteJoined("cedar", 2) in town.told(three)
        assert town.run(three) == town.run(two)
