"""From a hospital's PACS to a trained model, and a contrast that was missing back to the PACS."""

import gzip
import json
import subprocess
from io import BytesIO
from pathlib import Path

import numpy as np
import pydicom
import pytest

from tests.helpers.command import Done, program
from tests.helpers.dicom_hospital import Visit, dicom_files, hospital, save_visit
from tests.helpers.pacs import OrthancServer, archive_toml, orthanc, required_program

pytestmark = [pytest.mark.slow, pytest.mark.full]
VISITS = hospital(9)
LACKING = Visit("PID-99001", "Lorenzo^Aldonza", "19600214", "20220301", 990, "062Y")
KEPT = ("T1w", "PDw", "FLAIR")
STUDY = """
name = "from-the-archive"
seed = 3
rounds = 2

[elements]
contrasts = ["T1w", "T2w"]
size = [32, 32]
spacing = [6.0, 6.0]
split = { train = 0.6, validation = 0.2, test = 0.2 }
field_strengths = [1.5]

[task]
kind = "synthesis"
model = "small"

[training]
threads = 1

[method]
kind = "pflsynth"

[[site]]
name = "alder"
data = "files"
tasks = ["T1w->T2w"]
"""


def good(*words: str | Path) -> Done:
    done = program(*words)
    assert done.code == 0, (done.out, done.err)
    return done


def filled(server: OrthancServer) -> None:
    for visit in VISITS:
        server.store(made for _, made in dicom_files(visit))
    server.store(made for _, made in dicom_files(LACKING, KEPT))


def trained(server: OrthancServer, folder: Path) -> Path:
    """Bring what the PACS holds to volumes, prepare and check them, and train."""
    site = archive_toml(server.url, folder=folder / "alder", more="[prepare]\n")
    study = folder / "study.toml"
    study.write_text(STUDY)
    states = json.loads(good("site", "ingest", site, "--json", "--quiet").out)["states"]
    assert states["checked"] == 4 * len(VISITS) + len(KEPT)
    good("site", "prepare", site, "--workers", "1", "--quiet")
    assert "alder" in good("check", study, "--site", site).out
    good("run", study, "--site", site, "--out", folder / "run", "--quiet")
    return folder / "run"


def synthesised(run: Path, folder: Path) -> list[Path]:
    """Make what the last patient lacks, as a series that dcmtk takes."""
    save_visit(folder / "series", LACKING, ("T1w",))
    words = ("--site", "alder", "--from", "T1w", "--to", "T2w", folder / "series", folder / "made")
    good("synthesize", run, *words, "--dicom", "--quiet")
    files = sorted((folder / "made").iterdir())
    test = subprocess.run([required_program("dcmftest"), *files], capture_output=True, check=False)
    assert test.returncode == 0
    return files


def sent_and_read_again(server: OrthancServer, files: list[Path]) -> list[bytes]:
    before = set(server.asked("series").json())
    server.store(pydicom.dcmread(file) for file in files)
    [series] = set(server.asked("series").json()) - before
    names = server.asked(f"series/{series}").json()["Instances"]
    return [server.asked(f"instances/{name}/file").content for name in names]


def test_a_pacs_is_learned_from_and_gets_back_what_was_missing(tmp_path: Path):
    with orthanc(tmp_path / "pacs") as server:
        filled(server)
        files = synthesised(trained(server, tmp_path), tmp_path)
        back = sent_and_read_again(server, files)
    read = [pydicom.dcmread(BytesIO(content)) for content in back]
    assert len(read) == 6
    assert {(each.StudyInstanceUID, each.PatientID) for each in read} == {
        (LACKING.study, LACKING.patient)
    }
    assert all("not for diagnosis" in each.SeriesDescription for each in read)
    assert all(each.ImageType[0] == "DERIVED" for each in read)
    assert max(np.ptp(each.pixel_array) for each in read) > 0
    (tmp_path / "back.dcm").write_bytes(back[0])
    words = [required_program("dcmdump"), tmp_path / "back.dcm"]
    dumped = subprocess.run(words, capture_output=True, check=True)
    assert b"not for diagnosis" in dumped.stdout
    names_nobody(
        [tmp_path / "alder" / "volumes", tmp_path / "alder" / "prepared", tmp_path / "run"]
    )


def names_nobody(folders: list[Path]) -> None:
    """Search every byte of what was derived for all that identifies a patient."""
    for path in (path for folder in folders for path in folder.rglob("*") if path.is_file()):
        content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
        content += str(path).encode()
        for visit in (*VISITS, LACKING):
            assert not [secret for secret in visit.secrets if secret.encode() in content], path
