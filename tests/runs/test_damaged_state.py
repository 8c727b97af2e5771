"""Files of a run that were damaged, lost or cut: it goes on to the same bits, or says why not."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from grandrounds.core.errors import BadFolder
from grandrounds.core.events import RoundFinished, RoundLost, RunResumed, SiteTrained
from grandrounds.core.run_folder import RunFolder
from grandrounds.core.state import RoundStore, saved_rounds
from grandrounds.runs.loop import run_study as run
from grandrounds.study.file import to_toml
from grandrounds.study.study import Study
from tests.helpers.command import Done, events, inside
from tests.helpers.damage import flip
from tests.helpers.federation import digests, rows, stopped, tiny
from tests.helpers.grids import with_representatives

pytestmark = pytest.mark.slow

ARMS = {
    "star": ("method.kind=ditto",),
    "swarm": ("topology.kind=swarm",),
    "split": ("method.kind=fedavg", "topology.kind=split", "topology.cut=encoder.2"),
}


def of(kind: str) -> Study:
    return tiny("rounds=4", *ARMS[kind], sites=2)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Runs that nothing befell, each made once."""
    folder = tmp_path_factory.mktemp("whole")

    def made(kind: str) -> Path:
        if not (folder / kind).exists():
            run(of(kind), folder / kind)
        return folder / kind

    return made


def in_round_4(folder: Path, kind: str = "star") -> Path:
    """A run that was stopped when its first site had trained in round 4."""
    stopped(of(kind), folder, lambda e: isinstance(e, SiteTrained) and e.round == 4)
    return folder


def resumed(
    folder: Path, patch: pytest.MonkeyPatch, capture: pytest.CaptureFixture[str], *words: str
) -> Done:
    study = folder.with_suffix(".toml")
    study.write_text(to_toml(of("star")))
    return inside(patch, capture, "run", study, "--out", folder, "--resume", "--quiet", *words)


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*.safetensors")}


PLACES = {
    "coordinator": ("star", "state"),
    "site": ("star", "sites/alder/state"),
    "merged model": ("swarm", "sites/birch/merged/state"),
    "split": ("split", "sites/alder/state"),
}


@pytest.mark.parametrize("place", with_representatives(PLACES, ("coordinator", "site")))
def test_a_damaged_newest_round_is_repeated_with_a_word(
    place: str, tmp_path: Path, whole: Callable[[str], Path]
):
    kind, where = PLACES[place]
    folder = in_round_4(tmp_path / "run", kind)
    flip(RoundStore(folder / where).path(3))
    run(of(kind), folder, resume=True)
    told = events(folder)
    assert RunResumed(2) in told
    [lost] = [event for event in told if isinstance(event, RoundLost)]
    assert lost.round == 3
    assert lost.site in ("coordinator", *where.split("/"))
    assert digests(folder) == digests(whole(kind))
    assert rows(folder / "scores.csv") == rows(whole(kind) / "scores.csv")


def test_a_damaged_round_is_told_on_stderr_even_when_all_else_is_quiet(
    tmp_path: Path,
    whole: Callable[[str], Path],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    folder = in_round_4(tmp_path / "run")
    path = saved_rounds(folder).path(3)
    path.write_bytes(path.read_bytes()[:-9])
    done = resumed(folder, monkeypatch, capsys)
    assert done.code == 0
    words = f"warning: ditto: round 3 is repeated: {path}: not a readable safetensors"
    assert done.err.startswith(words)
    assert digests(folder) == digests(whole("star"))


def test_a_site_without_its_state_stops_the_run_and_nothing_is_deleted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    folder = in_round_4(tmp_path / "run")
    shutil.rmtree(folder / "sites/birch")
    before = files_of(folder)
    done = resumed(folder, monkeypatch, capsys)
    assert done == Done(
        2,
        "",
        f"grandrounds: {folder}: the coordinator saved rounds {best_of(folder)}2, 3, but none is "
        f"held by everyone: {lost_by(folder)}. Put what is lost back from a copy "
        "(of a site: sites/NAME/state), or start anew with another --out; nothing was deleted.\n",
    )
    assert files_of(folder) == before


def best_of(folder: Path) -> str:
    return "1, " if 1 in saved_rounds(folder).rounds() else ""


def lost_by(folder: Path) -> str:
    rounds = reversed(saved_rounds(folder).rounds())
    return "; ".join(f"site 'birch' has no intact state of round {round}" for round in rounds)


def test_a_coordinator_without_its_state_stops_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    folder = in_round_4(tmp_path / "run")
    shutil.rmtree(folder / RunFolder.state)
    before = files_of(folder)
    done = resumed(folder, monkeypatch, capsys)
    assert (done.code, done.out) == (2, "")
    assert "the coordinator holds no saved round, but site 'alder' holds rounds" in done.err
    assert files_of(folder) == before


def cut_journal(folder: Path, loses: Callable[[str], bool]) -> None:
    path = folder / RunFolder.journal
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(line for line in lines if not loses(line)))


def test_a_journal_that_was_cut_costs_a_round_and_no_row_of_the_tables(
    tmp_path: Path, whole: Callable[[str], Path]
):
    folder = in_round_4(tmp_path / "run")
    path = folder / RunFolder.journal
    text = path.read_text()
    path.write_text(text[: text.index('{"event": "RoundFinished"', text.index('"round": 3'))])
    run(of("star"), folder, resume=True)
    [lost] = [event for event in events(folder) if isinstance(event, RoundLost)]
    assert lost.message == "journal.jsonl lacks the end of round 3, as if it had been cut"
    assert digests(folder) == digests(whole("star"))


def test_a_journal_without_its_first_rounds_stops_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    folder = in_round_4(tmp_path / "run")
    cut_journal(folder, lambda line: line.startswith('{"event": "Round') and '"round": 1,' in line)
    before = files_of(folder)
    done = resumed(folder, monkeypatch, capsys)
    assert (done.code, done.out) == (2, "")
    assert "journal.jsonl lacks the end of round 1, as if it had been cut" in done.err
    assert done.err.count("\n") == 1
    assert files_of(folder) == before


def modes(folder: Path) -> dict[str, str]:
    """The permissions of what a run saved for its sites."""
    found = sorted(path for path in (folder / "sites").rglob("*"))
    return {str(path.relative_to(folder)): f"{path.stat().st_mode & 0o777:o}" for path in found}


def test_what_is_private_its_owner_alone_can_read(tmp_path: Path):
    """Whatever the umask is, and where an older version left it open."""
    umask, folder = os.umask(0), tmp_path / "run"
    try:
        run(tiny("rounds=1", "training.fine_tune=1", *ARMS["swarm"], sites=2), folder)
        found = modes(folder)
    finally:
        os.umask(umask)
    kinds = {Path(place).name for place in found}
    assert {"panels.npz", "tuned.safetensors", "private.safetensors", "merged", "state"} <= kinds
    assert {mode for place, mode in found.items() if "." in Path(place).name} == {"600"}
    assert {mode for place, mode in found.items() if "." not in Path(place).name} == {"700"}


def test_what_an_older_version_left_open_is_closed_by_the_next_round(tmp_path: Path):
    folder = in_round_4(tmp_path / "run", "swarm")
    for path in (folder / "sites").rglob("*"):
        path.chmod(0o755 if path.is_dir() else 0o644)
    run(of("swarm"), folder, resume=True)
    found = modes(folder)
    folders = {mode for place, mode in found.items() if "." not in Path(place).name}
    assert folders == {"700"}
    assert found["sites/birch/state/round-000004.safetensors"] == "600"
    assert found["sites/birch/merged/state/round-000004.safetensors"] == "600"


def test_a_folder_without_its_study_is_not_begun_anew(tmp_path: Path):
    folder = in_round_4(tmp_path / "run")
    (folder / RunFolder.study).unlink()
    before = files_of(folder)
    with pytest.raises(BadFolder, match="holds a run already, 3 rounds far"):
        run(of("star"), folder)
    assert files_of(folder) == before


def test_a_run_that_lost_nothing_says_nothing(tmp_path: Path, whole: Callable[[str], Path]):
    folder = in_round_4(tmp_path / "run")
    run(of("star"), folder, resume=True)
    assert not [event for event in events(folder) if isinstance(event, RoundLost)]
    finished = [e.round for e in events(folder) if isinstance(e, RoundFinished)]
    assert finished == [1, 2, 3, 4]
    assert digests(folder) == digests(whole("star"))
