"""The batch script of the page on Slurm is what a cluster gets: read, run, stopped, sent again."""

import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from grandrounds.core.events import RunFinished, RunResumed
from tests.helpers.command import events, wait_for

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/how-to/slurm.md").read_text("utf-8")
SCRIPT = re.search(r"<<'END'\n(.*?)^END$", PAGE, re.MULTILINE | re.DOTALL)


@pytest.fixture
def script(tmp_path: Path) -> Path:
    assert SCRIPT
    shutil.copytree(ROOT / "studies", tmp_path / "studies")
    (tmp_path / "tiny.sbatch").write_text(SCRIPT[1])
    return tmp_path / "tiny.sbatch"


def started(script: Path) -> "subprocess.Popen[str]":
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, "SLURM_CPUS_PER_TASK": "1"}
    return subprocess.Popen(
        ["bash", script], cwd=script.parent, env=environment, stderr=subprocess.PIPE, text=True
    )


def test_the_script_is_read_by_bash_and_by_slurm(script: Path):
    done = subprocess.run(["bash", "-n", script], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    first, *lines = script.read_text().splitlines()
    assert first == "#!/bin/bash"
    options = [line for line in lines if line.startswith("#SBATCH ")]
    assert lines[: len(options)] == options, "Slurm reads no option after the first command"
    assert all(re.fullmatch(r"#SBATCH --[a-z-]+=\S+", line) for line in options)
    assert "#SBATCH --signal=B:TERM@120" in options


@pytest.mark.full
@pytest.mark.slow
def test_a_job_whose_time_is_over_stops_and_goes_on_when_it_is_sent_again(script: Path):
    """The signal reaches the program, as it takes the shell's place."""
    out = script.parent / "runs" / "tiny"
    with started(script) as job:
        wait_for(out, lambda told: any(getattr(event, "round", 0) == 2 for event in told))
        job.send_signal(signal.SIGTERM)
        _, said = job.communicate(timeout=60)
    assert job.returncode == 1
    assert "stopped; every finished round is saved" in said
    assert not (out / "scores.csv").exists()
    with started(script) as job:
        _, said = job.communicate(timeout=240)
    assert (job.returncode, said) == (0, "")
    told = events(out)
    assert [event.round > 0 for event in told if isinstance(event, RunResumed)] == [True]
    assert isinstance(told[-1], RunFinished)
    assert (out / "scores.csv").exists()
