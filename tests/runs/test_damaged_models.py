"""A finished run's model of which the disk changed one bit: no command uses it."""

import shutil
from pathlib import Path

import pytest

from grandrounds.runs.loop import run_study as run
from tests.helpers.command import Done, inside
from tests.helpers.damage import flip
from tests.helpers.federation import tiny

PARTS = ("model/shared.safetensors", "sites/alder/private.safetensors")
TUNED = "sites/alder/tuned.safetensors"
ONE_ROUND = ("rounds=1", "method.kind=pflsynth")
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose sites use shared and private weights, and one whose sites tuned the model."""
    folder = tmp_path_factory.mktemp("runs")
    run(tiny(*ONE_ROUND, sites=2), folder / "plain")
    run(tiny(*ONE_ROUND, "training.fine_tune=1", sites=2), folder / "tuned")
    return folder


@pytest.mark.parametrize(("kind", "part"), [*(("plain", part) for part in PARTS), ("tuned", TUNED)])
def test_no_command_uses_it_and_each_says_which_file_it_is(
    kind: str,
    part: str,
    runs: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    folder = tmp_path / "run"
    shutil.copytree(runs / kind, folder)
    flip(folder / part)

    def said(*words: str | Path) -> Done:
        return inside(monkeypatch, capsys, *words)

    source = tmp_path / "t1w.nii.gz"
    out = tmp_path / "out"
    commands = {
        "evaluate": ("evaluate", folder, "--matrix"),
        "export": ("export", folder, "--site", "alder", "--out", out),
        "synthesize": (
            *("synthesize", folder, "--site", "alder", "--from", "T1w", "--to", "T2w"),
            *(source, out),
        ),
    }
    for name, words in commands.items():
        done = said(*words)
        assert done.code == 2, (name, done)
        assert f"{folder / part}: is not what was saved (its digests differ)" in done.err, name
    assert not out.exists()
