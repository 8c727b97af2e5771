"""A site joins a run that others began: to the bits of a run in which it was awaited."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from grandrounds.algorithms import METHODS
from grandrounds.core.errors import BadFolder, BadStudy
from grandrounds.core.events import Event, RoundFinished, SiteJoined, SiteTrained
from grandrounds.core.journal import read_journal
from grandrounds.core.run_folder import RunFolder
from grandrounds.report.page.html import write_report
from grandrounds.runs.loop import run_study as run
from grandrounds.study.checks import complete, notes
from grandrounds.study.file import read_study
from grandrounds.study.study import Study
from tests.helpers.federation import digests, rows, stopped, tiny

pytestmark = pytest.mark.slow


def joining_in(round: int, *overrides: str, site: str = "elder") -> Study:
    """Four sites, one of which joins in a round."""
    study = tiny("rounds=4", *overrides)
    specs = [replace(s, joins=round) if s.name == site else s for s in study.site]
    return complete(replace(study, site=tuple(specs)))


def without(study: Study, site: str = "elder") -> Study:
    return complete(replace(study, site=tuple(s for s in study.site if s.name != site)))


def took_part(folder: Path, site: str) -> Sequence[int]:
    events = [event for _, event in read_journal(RunFolder(folder).journal)]
    return sorted({e.round for e in events if isinstance(e, SiteTrained) and e.site == site})


def stop_in(round: int) -> Callable[[Event], None]:
    """Stop a run at the end of a round, before it is saved."""

    def stop(event: Event) -> None:
        if isinstance(event, RoundFinished) and event.round == round:
            raise KeyboardInterrupt

    return stop


def after_round(folder: Path, study: Study, round: int) -> Path:
    """A run that was stopped when a round was over."""
    stopped(study, folder, lambda e: isinstance(e, RoundFinished) and e.round == round + 1)
    return folder


@pytest.mark.parametrize("method", ["fedavg", "ditto", "scaffold"])
def test_a_run_goes_on_with_one_more_site_to_the_bits_of_one_that_awaited_it(
    method: str, tmp_path: Path
):
    amended = joining_in(3, f"method.kind={method}")
    folder = after_round(tmp_path / "run", without(amended), 2)
    run(amended, folder, resume=True)
    run(amended, tmp_path / "awaited")
    assert digests(folder) == digests(tmp_path / "awaited")
    assert rows(folder / "scores.csv") == rows(tmp_path / "awaited" / "scores.csv")
    assert took_part(folder, "elder") == [3, 4]
    assert took_part(folder, "alder") == [1, 2, 3, 4]
    assert read_study(RunFolder(folder).study) == amended


def test_until_it_joins_a_run_is_that_of_the_others(tmp_path: Path):
    amended = joining_in(3, "method.kind=fedavg")
    run(amended, tmp_path / "awaited")
    run(without(amended), tmp_path / "others")
    both = zip(digests(tmp_path / "awaited"), digests(tmp_path / "others"), strict=True)
    assert [one == other for one, other in both] == [True, True, False, False]


def test_the_journal_says_who_joined_and_nobody_is_called_absent(tmp_path: Path):
    run(joining_in(2, "method.kind=fedavg"), tmp_path)
    events = [event for _, event in read_journal(RunFolder(tmp_path).journal)]
    assert [e for e in events if isinstance(e, SiteJoined)] == [SiteJoined("elder", 2)]
    page = write_report(tmp_path).read_text()
    assert "Elder joined in round 2." in page
    assert "missed round" not in page


def test_the_tested_model_is_of_a_round_in_which_all_had_joined(tmp_path: Path):
    run(joining_in(4, "method.kind=fedavg"), tmp_path)
    assert {row["round"] for row in rows(tmp_path / "scores.csv")} == {"4"}


def test_a_site_that_joined_goes_on_after_a_stop_as_the_others_do(tmp_path: Path):
    study = joining_in(2, "method.kind=ditto")
    folder = after_round(tmp_path / "run", study, 2)
    run(study, folder, resume=True)
    run(study, tmp_path / "whole")
    assert digests(folder) == digests(tmp_path / "whole")


def test_one_site_joins_after_another(tmp_path: Path):
    both = joining_in(4, "method.kind=fedavg")
    sites = tuple(replace(s, joins=2) if s.name == "cedar" else s for s in both.site)
    both = replace(both, site=sites)
    two, three = without(without(both), "cedar"), without(both)
    folder = after_round(tmp_path / "run", two, 1)
    with pytest.raises(KeyboardInterrupt):
        run(three, folder, resume=True, listeners=[stop_in(3)])
    run(both, folder, resume=True)
    run(both, tmp_path / "awaited")
    assert digests(folder) == digests(tmp_path / "awaited")
    assert (took_part(folder, "cedar"), took_part(folder, "elder")) == ([2, 3, 4], [4])


def test_nobody_joins_a_round_that_is_over(tmp_path: Path):
    amended = joining_in(2, "method.kind=fedavg")
    folder = after_round(tmp_path / "run", without(amended), 2)
    before = RunFolder(folder).study.read_bytes()
    with pytest.raises(BadFolder, match="began with another study; changed: site"):
        run(amended, folder, resume=True)
    assert RunFolder(folder).study.read_bytes() == before


def test_nothing_else_may_change_when_a_site_joins(tmp_path: Path):
    amended = joining_in(3, "method.kind=fedavg", "training.epochs=2")
    folder = after_round(tmp_path / "run", without(joining_in(3, "method.kind=fedavg")), 2)
    with pytest.raises(BadFolder, match=r"changed: training\.epochs"):
        run(amended, folder, resume=True)


def test_a_network_that_grows_with_the_roster_takes_no_site_that_was_not_foreseen(tmp_path: Path):
    amended = joining_in(3, "method.kind=pflsynth")
    folder = after_round(tmp_path / "run", without(amended), 2)
    with pytest.raises(BadFolder, match="the network grows with the roster"):
        run(amended, folder, resume=True)
    run(without(amended), folder, resume=True)  # nothing is lost
    run(without(amended), tmp_path / "whole")
    assert digests(folder) == digests(tmp_path / "whole")


@pytest.mark.parametrize(
    "method", [n for n, kind in METHODS.items() if not kind().sharing().pooled]
)
def test_a_site_can_join_with_every_method(method: str, tmp_path: Path):
    study = joining_in(2, f"method.kind={method}", "rounds=2")
    run(study, tmp_path)
    assert took_part(tmp_path, "elder") == [2]
    assert {row["site"] for row in rows(tmp_path / "scores.csv")} == set(study.trainers)


REFUSED = {
    "a round before the first": (0, (), "joins is 0; it must be a round from 1 to 4"),
    "a round after the last": (5, (), "joins is 5"),
    "a swarm": (2, ("topology.kind=swarm",), 'would do nothing over topology "swarm"'),
    "pooled data": (2, ("method.kind=central",), "where all data are pooled"),
    "a held-out site": (2, ('holdout_sites=["elder"]',), "a held-out site never trains"),
    "a quorum of more than begin": (2, ("topology.require=4",), "only 3 sites begin"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_a_site_that_cannot_join_so_is_refused(kind: str):
    round, overrides, sentence = REFUSED[kind]
    with pytest.raises(BadStudy, match=sentence):
        joining_in(round, "method.kind=fedavg", *overrides)


def test_check_says_when_a_site_joins():
    study = joining_in(3, "method.kind=fedavg")
    assert "site 'elder' takes part from round 3 on" in notes(study)


def test_not_all_sites_can_join_later():
    study = tiny("method.kind=fedavg", "rounds=4")
    with pytest.raises(BadStudy, match="one or more must begin"):
        complete(replace(study, site=tuple(replace(s, joins=2) for s in study.site)))


def test_a_run_whose_sites_start_apart_goes_on_after_a_stop(tmp_path: Path):
    """Nothing is sent before round 1 there, so there is no first model to compare with."""
    study = tiny("rounds=3", "method.kind=fedavg", "training.first_broadcast=false", sites=2)
    folder = after_round(tmp_path / "run", study, 1)
    run(study, folder, resume=True)
    run(study, tmp_path / "whole")
    assert digests(folder) == digests(tmp_path / "whole")
