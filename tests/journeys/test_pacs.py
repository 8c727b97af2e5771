"""A hospital's PACS to volumes: a real one, which is killed in the middle of a series."""

import json
import sqlite3
import subprocess
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydicom.dataset import FileDataset

from grandrounds.data.session_files import find_sessions
from tests.helpers.command import Done, program, started
from tests.helpers.dicom_hospital import CONTRASTS, Visit, dicom_file, dicom_files, hospital
from tests.helpers.pacs import OrthancServer, archive_toml, orthanc

pytestmark = [pytest.mark.slow, pytest.mark.full]
VISITS = hospital(3)


@pytest.fixture(scope="module")
def pacs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OrthancServer]:
    """A PACS with a hospital's images: 3 patients, 4 visits, 4 contrasts each."""
    with orthanc(tmp_path_factory.mktemp("pacs")) as server:
        for visit in VISITS:
            assert server.store(made for _, made in dicom_files(visit)) == 24
        yield server


def told(done: Done) -> Mapping[str, Any]:
    assert done.code == 0, done.err
    return json.loads(done.out)


def test_a_hospital_comes_over_dicomweb_and_its_states_are_read(
    pacs: OrthancServer, tmp_path: Path
):
    site = archive_toml(pacs.url, folder=tmp_path)
    found = told(program("site", "ingest", site, "--json", "--quiet"))
    assert found["states"] == dict.fromkeys(found["states"], 0) | {"checked": 16}
    sessions = find_sessions(tmp_path / "volumes")
    assert len(sessions) == 4
    assert {tuple(sorted(each.contrasts)) for each in sessions} == {tuple(sorted(CONTRASTS))}
    assert not list((tmp_path / "volumes-private" / "fetched").iterdir())
    again = program("site", "archive", site, "--cases")
    assert again.code == 0
    assert again.out.count("checked") >= 16
    for visit in VISITS:
        assert not [secret for secret in visit.secrets if secret in again.out]
    status = program("site", "ingest", site, "--status", "--json")
    assert told(status) == found


def test_a_query_takes_what_was_asked_for(pacs: OrthancServer, tmp_path: Path):
    query = '[archive.query]\nuntil = 2019-12-31\nbody_part = "BRAIN"\ndescription = "*axial 0*"\n'
    site = archive_toml(pacs.url, folder=tmp_path, more=query)
    found = told(program("site", "ingest", site, "--json", "--quiet"))
    assert [(case["session"], case["contrast"]) for case in found["cases"]] == [("ses-1", "T1w")]


def test_a_wrong_password_and_a_pacs_that_is_down_are_sentences(
    pacs: OrthancServer, tmp_path: Path
):
    site = archive_toml(pacs.url, folder=tmp_path)
    (tmp_path / "token").write_text("site:wrong")
    done = program("site", "ingest", site, "--quiet")
    assert (done.code, done.err.count("\n")) == (2, 1)
    assert "lets this site not in (status 401)" in done.err
    down = archive_toml("http://127.0.0.1:9/dicom-web", folder=tmp_path / "down")
    done = program("site", "ingest", down, "--quiet")
    assert (done.code, done.err.count("\n")) == (2, 1)
    assert "cannot be reached" in done.err


def big_series() -> Iterator[FileDataset]:
    """Enough bytes that a series is on its way for a while."""
    visit, rng = Visit("PID-90001", number=900), np.random.default_rng(1)
    for number in range(150):
        picture = rng.integers(0, 1000, (512, 512), np.uint16)
        made = dicom_file(visit, "T1w", number, picture)
        made.ImagePositionPatient = [-96, -96, float(number)]
        yield made


def parts(private: Path) -> Mapping[Path, tuple[int, int]]:
    found = (private / "fetched").glob("*/part-*.dcm")
    return {path: (path.stat().st_ino, path.stat().st_mtime_ns) for path in found}


def test_a_pacs_that_is_killed_in_mid_series_costs_what_was_on_its_way(tmp_path: Path):
    """The next run fetches what is missing and no file twice: those that came are untouched."""
    site = archive_toml("unknown", folder=tmp_path, more="keep_fetched = true\n")
    with orthanc(tmp_path / "pacs") as server:
        text = site.read_text().replace("keep_fetched = true\n", "").replace("unknown", server.url)
        site.write_text(text.replace("identified", "keep_fetched = true\nidentified"))
        number = server.store(big_series())
        private = tmp_path / "volumes-private"
        with started("site", "ingest", site, "--quiet") as process:
            wait_until(lambda: len(parts(private)) >= 5, process)
            server.kill()
            out, err = process.communicate(timeout=120)
        came = parts(private)
        assert process.returncode == 2, (out, err)
        assert "cannot be reached" in err or "what came is kept" in err
        assert 5 <= len(came) < number
        assert states_in(private) == {"found"}
        server.start()
        found = told(program("site", "ingest", site, "--json", "--quiet"))
        assert found["states"]["checked"] == 1
        after = parts(private)
        assert len(after) == number
        assert {path: after[path] for path in came} == came


def wait_until(holds: Any, process: subprocess.Popen[str]) -> None:
    for _ in range(6000):
        if holds() or process.poll() is not None:
            break
        time.sleep(0.01)
    assert holds(), process.communicate()


def states_in(private: Path) -> set[str]:
    with sqlite3.connect(private / "cases.sqlite") as connection:
        return {row[0] for row in connection.execute("SELECT state FROM cases")}


def test_a_run_that_is_killed_goes_on_to_the_same_volumes(pacs: OrthancServer, tmp_path: Path):
    site = archive_toml(pacs.url, folder=tmp_path)
    volumes, private = tmp_path / "volumes", tmp_path / "volumes-private"
    with started("site", "ingest", site, "--quiet") as process:
        wait_until(lambda: len(list(volumes.glob("*.gz"))) >= 3, process)
        process.kill()
        process.wait()
    first = {path: path.stat().st_mtime_ns for path in volumes.glob("*.gz")}
    done = {path for path in first if path.name in outputs_in(private)}
    found = told(program("site", "ingest", site, "--json", "--quiet"))
    assert found["states"]["checked"] == 16
    assert {path: path.stat().st_mtime_ns for path in done} == {path: first[path] for path in done}


def outputs_in(private: Path) -> set[str]:
    with sqlite3.connect(private / "cases.sqlite") as connection:
        rows = connection.execute("SELECT output FROM cases WHERE state = 'checked'")
        return {row[0] for row in rows}


def test_ctrl_c_is_one_sentence_and_the_run_can_go_on(pacs: OrthancServer, tmp_path: Path):
    site = archive_toml(pacs.url, folder=tmp_path)
    with started("site", "ingest", site, "--quiet") as process:
        wait_until(lambda: (tmp_path / "volumes-private" / "cases.sqlite").exists(), process)
        time.sleep(1)
        process.send_signal(2)
        _, err = process.communicate(timeout=60)
    assert process.returncode == 1
    assert err == (
        "grandrounds: stopped; what is done is kept. Give the same command again to go on.\n"
    )
    found = told(program("site", "ingest", site, "--json", "--quiet"))
    assert found["states"]["checked"] == 16


def test_files_that_the_network_protocol_of_dicom_brought_are_ingested(tmp_path: Path):
    """dcmtk sends a folder, as a scanner does; another client uploads over DICOMweb."""
    visit = Visit("PID-70", "Rocinante^R", number=700)
    folder = tmp_path / "sent"
    folder.mkdir()
    for name, made in dicom_files(visit, ("T2w",)):
        made.save_as(folder / name, enforce_file_format=True)
    with orthanc(tmp_path / "pacs") as server:
        server.send(folder)
        server.stow([made for _, made in dicom_files(visit, ("T1w",))])
        assert len(server.uids()) == 12
        site = archive_toml(server.url, folder=tmp_path / "site")
        found = told(program("site", "ingest", site, "--json", "--quiet"))
    assert sorted(case["contrast"] for case in found["cases"]) == ["T1w", "T2w"]
