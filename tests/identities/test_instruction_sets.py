"""The same bits on one kind of processor, and others, as near as rounding is, on another."""

import csv
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from grandrounds.runs.loop import run_study as run
from tests.helpers.federation import digests, tiny

ROOT = Path(__file__).parents[2]
OLDER = {"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2"}
OPTIONS = ("method.kind=fedavg", "rounds=1", "training.precision=fp32", "training.threads=1")
ELSEWHERE = """
import sys
from pathlib import Path
import torch
from tests.identities.test_instruction_sets import trained
folder = Path(sys.argv[1])
assert torch.backends.cpu.get_cpu_capability() == "AVX2"
for topology in ("star", "swarm"):
    trained(folder / topology, topology)
"""


def trained(folder: Path, topology: str = "star") -> list[str]:
    run(tiny(*OPTIONS, f"topology.kind={topology}", sites=2), folder)
    return list(digests(folder))


def psnr(folder: Path) -> list[float]:
    with (folder / "scores.csv").open() as file:
        return [float(row["value"]) for row in csv.DictReader(file) if row["metric"] == "psnr"]


@pytest.mark.slow
@pytest.mark.full
@pytest.mark.skipif(
    torch.backends.cpu.get_cpu_capability() != "AVX512", reason="one instruction set only"
)
def test_an_older_instruction_set_has_bits_of_its_own_and_keeps_to_them(tmp_path: Path):
    here = trained(tmp_path / "here")
    subprocess.run(
        [sys.executable, "-c", ELSEWHERE, tmp_path],
        env={**os.environ, **OLDER, "PYTHONPATH": os.pathsep.join([*sys.path, str(ROOT)])},
        cwd=ROOT,
        check=True,
    )
    star, swarm = (list(digests(tmp_path / name)) for name in ("star", "swarm"))
    assert star == swarm
    assert star != here, "the condition would not be needed"
    assert psnr(tmp_path / "star") == pytest.approx(psnr(tmp_path / "here"), abs=0.05)
