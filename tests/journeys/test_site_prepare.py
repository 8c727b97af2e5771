"""`grandrounds site prepare` from the command line, killed and given again."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from grandrounds.data.session_files import UNFINISHED
from tests.helpers.command import hear_ctrl_c, inside
from tests.helpers.scanned import save_session

FILE = """name = "oak"
data = "ready"
[prepare]
source = "raw"
bias = false
registration = "none"
"""


@pytest.fixture
def site(tmp_path: Path) -> Path:
    for who in ("sub-1", "sub-2"):
        save_session(tmp_path / "raw", who)
    (tmp_path / "oak.toml").write_text(FILE)
    return tmp_path / "oak.toml"


def test_a_site_is_prepared_and_a_second_run_does_nothing(
    site: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    first = inside(monkeypatch, capsys, "site", "prepare", site)
    assert first.code == 0, first.err
    assert first.out.startswith("sessions: 2 prepared\n")
    assert (site.parent / "ready/quality.html").exists()
    began = time.process_time()
    again = inside(monkeypatch, capsys, "site", "prepare", site, "--json")
    assert time.process_time() - began < 1
    assert [each["state"] for each in json.loads(again.out)["sessions"]] == ["unchanged"] * 2


def test_a_bad_session_is_told_and_the_code_says_so(
    site: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    (site.parent / "raw/sub-1_T2w.nii.gz").write_bytes(b"none")
    done = inside(monkeypatch, capsys, "site", "prepare", site, "--quiet")
    assert done.code == 2
    assert "sub-1_T2w.nii.gz: cannot be read" in done.err
    assert "1 of 2 sessions could not be prepared" in done.err
    assert "Traceback" not in done.err
    assert list((site.parent / "ready").glob("sub-2*"))


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ('name = "oak"\ndata = "ready"\n', "has no table [prepare]"),
        (FILE.replace('"ready"', '"raw"'), "must lie in two folders"),
        (FILE.replace('"raw"', '"nowhere"'), "No such file or directory"),
    ],
)
def test_a_wrong_site_file_is_refused(
    text: str,
    sentence: str,
    site: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    site.write_text(text)
    done = inside(monkeypatch, capsys, "site", "prepare", site)
    assert done.code == 2
    assert sentence in done.err
    assert done.err.count("\n") == 1


@pytest.mark.slow
@pytest.mark.full
@pytest.mark.parametrize(
    ("number", "sign"), [(signal.SIGKILL, "sub-1_T1w.nii.gz"), (signal.SIGINT, UNFINISHED)]
)
def test_killed_at_any_moment_it_goes_on_to_the_same_bytes(
    site: Path, number: signal.Signals, sign: str
):
    words = [sys.executable, "-c", "from grandrounds.cli import main; main()"]
    command = [*words, "site", "prepare", str(site), "--workers", "1"]
    ready = site.parent / "ready"
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, preexec_fn=hear_ctrl_c)
    while not (ready / sign).exists():
        assert process.poll() is None
        time.sleep(0.005)
    os.kill(process.pid, number)
    _, said = process.communicate()
    if number != signal.SIGKILL:
        assert process.returncode == 1
        assert "Give the same command again" in said
    assert (ready / UNFINISHED).exists()
    time.sleep(1.5)  # the child of a killed process ends with it
    subprocess.run(command, check=True, capture_output=True)
    stopped = {p.name: p.read_bytes() for p in ready.glob("sub-*")}
    site.write_text(FILE.replace('"ready"', '"fresh"'))
    subprocess.run(command, check=True, capture_output=True)
    assert stopped == {p.name: p.read_bytes() for p in (site.parent / "fresh").glob("sub-*")}
    assert not (ready / UNFINISHED).exists()
