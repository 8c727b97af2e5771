"""A run that was begun by an older version goes on with this one, to the same bits.

`older_run/NAME.toml` is a study, and `older_run/NAME` its run folder as the version of its journal
left it: stopped in the second of three rounds. These folders are never made anew.
"""

import platform
import shutil
from pathlib import Path

import pytest
import torch

from grandrounds.runs.loop import run_study as run
from grandrounds.study.file import read_study
from tests.helpers.command import inside
from tests.helpers.federation import digests, rows

OLDER = Path(__file__).with_name("older_run")
NAMES = ("ditto", "fedopt", "scaffold", "split", "swarm")


def copy_of(name: str, folder: Path) -> Path:
    """A run folder as the older version left it."""
    return Path(shutil.copytree(OLDER / name, folder / "resumed"))


def from_scratch(name: str, folder: Path) -> Path:
    """The same study from its first round to its last one, here and now."""
    run(read_study(OLDER / f"{name}.toml"), folder / "scratch")
    return folder / "scratch"


def skip_where_bits_differ(name: str, scratch: Path) -> None:
    """Skip where this platform rounds otherwise: its later rounds follow from another first one."""
    if digests(OLDER / name) != digests(scratch)[:1]:
        here = f"torch {torch.__version__} on {platform.machine()}"
        capability = torch.backends.cpu.get_cpu_capability()
        pytest.skip(f"older run '{name}': its first round has other bits on {here}, {capability}")


def files(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def test_there_is_an_older_run_of_every_study():
    assert {path.stem for path in OLDER.glob("*.toml")} == set(NAMES)
    assert all(len(digests(OLDER / name)) == 1 for name in NAMES)


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_an_older_run_is_resumed_to_the_bits_of_a_run_from_scratch(
    name: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    resumed = copy_of(name, tmp_path)
    words = ("run", OLDER / f"{name}.toml", "--out", resumed, "--resume", "--quiet")
    done = inside(monkeypatch, capsys, *words)
    assert done.code == 0, done.err
    assert len(digests(resumed)) == 3
    scratch = from_scratch(name, tmp_path)
    assert files(resumed) - files(scratch) == {"report.html"}
    assert files(scratch) - files(resumed) == set()
    skip_where_bits_differ(name, scratch)
    assert digests(resumed) == digests(scratch)
    assert rows(resumed / "scores.csv") == rows(scratch / "scores.csv")
