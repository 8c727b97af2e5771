"""Between hospitals a method of one's own runs where all have installed and accepted the same."""

import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest

from grandrounds.runs.loop import run_study as run
from grandrounds.study.acceptance import accept, save_acceptance
from grandrounds.study.file import fingerprint, to_toml
from grandrounds.study.installed import look_up
from grandrounds.study.study import Study
from tests.helpers.federation import digests, rows
from tests.helpers.hospital_processes import SERVER, PartyPlace, party_places, run_between
from tests.helpers.packages import OURS, WORD, lay_down, was_imported
from tests.helpers.task_studies import tiny_of

SITES = ("alder", "birch")
SMALL = ("elements.size=[16,16]", "elements.spacing=[14.0,14.0]", "rounds=2")
Places = Mapping[str, PartyPlace]


@pytest.fixture
def study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Study]:
    """A study of a method that is installed here, too."""
    (tmp_path / "packages").mkdir()
    monkeypatch.syspath_prepend(lay_down(tmp_path / "packages"))
    yield tiny_of("classification", *SMALL, f"method.kind={WORD}", sites=2)
    sys.modules.pop("our_methods", None)


@pytest.fixture
def places(study: Study, tmp_path: Path) -> Places:
    """Every party has installed the method, and every site has accepted the study with it."""
    places = party_places(tmp_path / "parties", SITES)
    for place in places.values():
        lay_down(place.packages)
        place.study.write_text(to_toml(study))
    for site in SITES:
        place = places[site]
        code = look_up(place.study).code
        keys = place.folder / "client.key", place.folder / "client.crt"
        save_acceptance(accept(fingerprint(study), *keys, (), code), place.folder)
    return places


def test_an_installed_method_has_the_digests_and_scores_of_one_process(
    study: Study, places: Places, tmp_path: Path
):
    run(study, tmp_path / "here")
    assert run_between(places) == ""
    there = places[SERVER].run
    assert len(set(digests(there))) == study.rounds
    assert digests(there) == digests(tmp_path / "here")
    assert rows(there / "scores.csv") == rows(tmp_path / "here" / "scores.csv")
    assert all(was_imported(place.packages) for place in places.values())


def altered(folder: Path) -> None:
    (folder / "our_methods.py").write_text(OURS + "# mended\n")


def gone(folder: Path) -> None:
    (folder / "our_methods.py").unlink()
    (folder / "our_methods-0.3.1.dist-info" / "RECORD").unlink()


CLOSED: Mapping[str, tuple[Callable[[Path], object], str]] = {
    "was changed": (altered, "the code that this study names is not what it accepted; install"),
    "was removed": (gone, "code that this study names is not installed there as a package"),
}


@pytest.mark.parametrize("what", CLOSED)
def test_what_changed_since_a_site_signed_is_not_imported(what: str, places: Places):
    change, sentence = CLOSED[what]
    change(places["alder"].packages)
    said = run_between(places)
    assert said.startswith(f"site 'alder' cannot open: {sentence}")
    assert "\n" not in said
    assert not was_imported(places["alder"].packages)
    assert not places[SERVER].run.exists()


def test_other_code_than_the_coordinator_s_is_refused_before_round_1(places: Places):
    altered(places[SERVER].packages)
    said = run_between(places)
    assert said.startswith("site 'alder' has our-methods 0.3.1 (")
    assert f') for "{WORD}", the coordinator 0.3.1 (' in said
    assert said.endswith("; install the same everywhere, and accept the study anew")
    assert not places[SERVER].run.exists()


def test_a_coordinator_without_the_package_imports_nothing_and_asks_nobody(places: Places):
    server = places[SERVER]
    (server.packages / "our_methods-0.3.1.dist-info" / "RECORD").unlink()
    assert f'method.kind = "{WORD}": our_methods is no installed package here' in (
        run_between(places)
    )
    assert not was_imported(server.packages)


def test_a_site_that_accepted_another_study_imports_nothing(places: Places, study: Study):
    alder = places["alder"]
    (alder.folder / "accepted" / f"{fingerprint(study)}.json").unlink()
    assert "site 'alder' cannot open: it has not accepted this study" in run_between(places)
    assert not was_imported(alder.packages)
