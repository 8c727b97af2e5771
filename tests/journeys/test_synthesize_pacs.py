"""A synthetic series goes to a real PACS and is what was written when it comes back."""

import subprocess
from io import BytesIO
from pathlib import Path

import numpy as np
import pydicom
import pytest

from grandrounds.runs.loop import run_study as run
from tests.helpers.command import inside
from tests.helpers.federation import tiny
from tests.helpers.mr_series import write_series
from tests.helpers.pacs import OrthancServer, required_program

AFFINE = np.diag([-7.0, -7.0, 5.0, 1.0])


def head() -> np.ndarray:
    x, y, _ = np.meshgrid(*(np.linspace(-1, 1, n) for n in (32, 32, 4)), indexing="ij")
    return np.where(x**2 + y**2 < 0.8, 500 + 300 * y, 0)


@pytest.mark.full
@pytest.mark.slow
def test_orthanc_and_dcmtk_accept_a_synthetic_series(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    dcmdump, dcmftest = required_program("dcmdump"), required_program("dcmftest")
    run(tiny("rounds=1", sites=1), tmp_path / "run")
    series, out = write_series(tmp_path / "series", head(), AFFINE), tmp_path / "made"
    words = ("--site", "alder", "--from", "T1w", "--to", "T2w", series, out, "--dicom")
    done = inside(monkeypatch, capsys, "synthesize", tmp_path / "run", *words)
    assert done.code == 0, done.err
    files = sorted(out.iterdir())
    assert subprocess.run([dcmftest, *files], capture_output=True, check=False).returncode == 0
    for file in files:
        read = subprocess.run([dcmdump, file], capture_output=True, check=True)
        assert read.stderr == b""
    made = [pydicom.dcmread(file) for file in files]
    server = OrthancServer(tmp_path / "pacs")
    server.start()
    try:
        sources = [pydicom.dcmread(file) for file in sorted(series.iterdir())]
        assert server.store([*sources, *made]) == 8
        [study] = server.asked("studies").json()
        assert len(server.asked(f"studies/{study}").json()["Series"]) == 2
        for name in server.asked("instances").json():
            back = pydicom.dcmread(BytesIO(server.asked(f"instances/{name}/file").content))
            [known] = [d for d in (*sources, *made) if d.SOPInstanceUID == back.SOPInstanceUID]
            assert np.array_equal(back.pixel_array, known.pixel_array)
            assert back == known
    finally:
        server.kill()
