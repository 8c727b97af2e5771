"""A run is not resumed under another version or with other data, unless someone says so."""

from collections.abc import Callable
from pathlib import Path
from random import Random

import numpy as np
import pytest

from grandrounds.core.errors import BadFolder
from grandrounds.core.events import RoundFinished, RunResumed
from grandrounds.core.state import saved_rounds
from grandrounds.data.cohort import Cohort, Session, data_digest
from grandrounds.runs import loop
from grandrounds.runs.arms import arms_of
from grandrounds.runs.loop import run_study as run
from grandrounds.runs.resume import VERSIONS
from grandrounds.study.file import parse_study, read_table, to_toml
from grandrounds.study.site_file import SiteFile
from grandrounds.study.study import Study
from tests.helpers.command import events, inside
from tests.helpers.federation import digests

NAMES = ("oak", "pine")
OLDER = {**VERSIONS, "torch": "1.0"}


def study() -> Study:
    return parse_study(
        {
            "name": "tables",
            "seed": 1,
            "rounds": 3,
            "elements": {"variables": ["age", "ill"]},
            "task": {"kind": "tabular", "hidden": [4]},
            "training": {"threads": 1},
            "method": {"kind": "fedavg"},
            "site": [{"name": name, "tasks": ["variables->ill"]} for name in NAMES],
        }
    )


def tables(folder: Path) -> list[SiteFile]:
    """Two hospitals with a table of patients each."""
    for name in NAMES:
        (folder / name).mkdir(parents=True)
        dice = Random(name)
        rows = [f"p{n}\t{dice.randint(20, 80)}\t{n % 2}" for n in range(40)]
        text = "\n".join(["participant_id\tage\till", *rows]) + "\n"
        (folder / name / "participants.tsv").write_text(text)
        (folder / f"{name}.toml").write_text(f'name = "{name}"\ndata = "{folder / name}"\n')
    return [SiteFile(name, folder / name) for name in NAMES]


def add_a_year(folder: Path) -> None:
    """Correct one cell of one table, as someone does who means well."""
    path = folder / "pine/participants.tsv"
    lines = path.read_text().splitlines()
    patient, age, ill = lines[7].split("\t")
    lines[7] = "\t".join((patient, str(int(age) + 1), ill))
    path.write_text("\n".join(lines) + "\n")


def stopped_in_round_3(
    folder: Path, files: list[SiteFile], of: Callable[[], Study] = study
) -> Path:
    def stop(event: object) -> None:
        if isinstance(event, RoundFinished) and event.round == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(of(), folder, files=files, listeners=[stop])
    return folder


def test_data_that_changed_since_stops_the_run_and_is_accepted_by_a_word(tmp_path: Path):
    files = tables(tmp_path / "data")
    folder = stopped_in_round_3(tmp_path / "run", files)
    add_a_year(tmp_path / "data")
    with pytest.raises(BadFolder) as refused:
        run(study(), folder, files=files, resume=True)
    words = "site 'pine' has other data than it trained on before"
    assert str(refused.value) == (
        f"{folder}: {words}. Resume with what was there before, or go on nevertheless with "
        "--accept-changes; the numbers are then not those of one run."
    )
    assert saved_rounds(folder).rounds()[-1] == 2
    run(study(), folder, files=files, resume=True, accept_changes=True)
    assert RunResumed(2, (words,)) in events(folder)
    assert len(digests(folder)) == 3


def test_data_as_it_was_is_no_change_wherever_it_lies(tmp_path: Path):
    folder = stopped_in_round_3(tmp_path / "run", tables(tmp_path / "data"))
    run(study(), folder, files=tables(tmp_path / "moved"), resume=True)
    assert RunResumed(2) in events(folder)


def test_another_version_stops_the_command_and_is_accepted_by_a_word(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    files, path = tables(tmp_path / "data"), tmp_path / "tables.toml"
    path.write_text(to_toml(study()))
    with monkeypatch.context() as patch:
        patch.setattr(loop, "VERSIONS", OLDER)
        folder = stopped_in_round_3(tmp_path / "run", files)
    sites = [word for name in NAMES for word in ("--site", tmp_path / "data" / f"{name}.toml")]
    words = ("run", path, "--out", folder, "--resume", "--quiet", *sites)
    done = inside(monkeypatch, capsys, *words)
    assert (done.code, done.out) == (2, "")
    assert done.err == (
        f"grandrounds: {folder}: its round 2 was computed by torch 1.0, and here is torch "
        f"{VERSIONS['torch']}. Resume with what was there before, or go on nevertheless with "
        "--accept-changes; the numbers are then not those of one run.\n"
    )
    assert inside(monkeypatch, capsys, *words, "--accept-changes").code == 0
    assert len(digests(folder)) == 3


def test_a_comparison_is_not_continued_by_another_version_unless_someone_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    files, path = tables(tmp_path / "data"), tmp_path / "tables.toml"
    path.write_text(to_toml(study()))
    sites = [word for name in NAMES for word in ("--site", tmp_path / "data" / f"{name}.toml")]
    words = ("compare", path, "--arms", "fedavg", "--out", tmp_path / "all", "--quiet", *sites)
    [arm] = arms_of(["fedavg"])
    with monkeypatch.context() as patch:
        patch.setattr(loop, "VERSIONS", OLDER)
        folder = tmp_path / "all/arms/fedavg/seed-1"
        stopped_in_round_3(folder, files, lambda: arm.study(read_table(path), []))
    done = inside(monkeypatch, capsys, *words, "--no-figures")
    assert (done.code, done.out) == (2, "")
    assert "its round 2 was computed by torch 1.0" in done.err
    assert inside(monkeypatch, capsys, *words, "--no-figures", "--accept-changes").code == 0


def cohort(*sessions: Session, split: str = "train") -> Cohort:
    empty: dict[str, tuple[Session, ...]] = {"train": (), "validation": (), "test": ()}
    return Cohort("oak", {**empty, split: sessions})  # pyright: ignore[reportArgumentType]


def session(**changes: object) -> Session:
    images = np.zeros((1, 1, 2, 2), np.float32)
    facts = {"patient": "a", "session": "", "contrasts": ("T1w",), "images": images, **changes}
    return Session(**facts)  # pyright: ignore[reportArgumentType]


def test_every_part_of_the_data_counts():
    ones = np.ones((1, 1, 2, 2), np.float32)
    mask = {"brain": np.ones((1, 2, 2), np.uint8)}
    known = [
        cohort(),
        cohort(session()),
        cohort(session(), split="test"),
        cohort(session(), session(patient="b")),
        cohort(session(patient="b")),
        cohort(session(session="1")),
        cohort(session(contrasts=("T2w",))),
        cohort(session(images=ones)),
        cohort(session(masks=mask)),
        cohort(session(values={"age": 1.0})),
        cohort(session(values={"age": float("nan")})),
        cohort(session(digest="ab")),
    ]
    found = [data_digest([each]) for each in known]
    assert len(set(found)) == len(known)
    assert found == [data_digest([each]) for each in known]
