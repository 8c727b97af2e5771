"""What a server that starts says of the jobs that it was running when it was killed."""

import json
import shutil
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from zipfile import ZipFile

import pytest

from grandrounds.core.events import RoundFinished, RunFinished
from grandrounds.core.journal import Journal
from grandrounds.study.file import to_toml
from grandrounds.study.study import Study
from tests.helpers.federation import tiny
from tests.helpers.flare_federation import needs_flare

pytest.importorskip("nvflare", reason="NVIDIA FLARE is not installed")

from grandrounds.flare.job import export_job, run_name
from grandrounds.flare.job_store import STORE, settle_lost_jobs, stored_jobs
from grandrounds.flare.kit import Kit
from tests.unit.flare.test_retention import JOB, OTHER, kit_of

pytestmark = needs_flare

COMPLETED, ABANDONED = "FINISHED:COMPLETED", "FINISHED:ABANDONED"


@dataclass(frozen=True)
class LostServer:
    """A server's kit as a kill left it, with one job of a study in its store."""

    kit: Kit
    study: Study

    @property
    def run(self) -> Path:
        return self.kit.folder / "grandrounds" / run_name(self.study)

    @property
    def stored(self) -> Path:
        return self.kit.folder / STORE / JOB

    def store(self, job: str = JOB, status: str = "RUNNING", *, began: float = 60.0) -> None:
        """Store a job, which began so many seconds ago, as NVFlare does."""
        folder, made = self.kit.folder / STORE / job, self.kit.folder / "made" / "tiny"
        folder.mkdir(parents=True)
        export_job(self.study, made)
        archive = shutil.make_archive(str(folder / "data"), "zip", made.parent)
        Path(archive).rename(folder / "data")
        start = time.time() - began
        when = datetime.fromtimestamp(start, UTC).isoformat()
        meta = {"status": status, "submit_time": start, "start_time": when, "job_id": job}
        (folder / "meta").write_text(json.dumps(meta))

    def finish(self) -> None:
        """Write what a finished run leaves at the server."""
        (self.run / "state").mkdir(parents=True)
        (self.run / "state" / "round-000001.safetensors").touch()
        (self.run / "study.toml").write_text(to_toml(self.study))
        Journal(self.run / "journal.jsonl").append(RunFinished(1, 1, "", 1.0, 0))
        (self.run / "scores.csv").write_text("scores")


@pytest.fixture
def server(tmp_path: Path) -> LostServer:
    found = LostServer(kit_of("server", tmp_path / "server"), tiny(sites=2))
    found.store()
    log = found.kit.folder / JOB / "log.txt"
    log.parent.mkdir()
    log.write_text("what was logged")
    return found


def test_a_run_that_had_finished_is_its_job_s_result_without_states(server: LostServer):
    server.finish()
    assert settle_lost_jobs(server.kit) == {JOB: COMPLETED}
    assert [job.status for job in stored_jobs(server.kit)] == [COMPLETED]
    with ZipFile(server.stored / "workspace") as archive:
        names = {name for name in archive.namelist() if not name.endswith("/")}
    assert names == {"log.txt", "run/journal.jsonl", "run/scores.csv", "run/study.toml"}
    assert not (server.kit.folder / JOB).exists()
    assert settle_lost_jobs(server.kit) == {}


def test_a_stored_job_that_names_a_module_in_the_kit_is_abandoned_and_the_module_not_run(
    server: LostServer, monkeypatch: pytest.MonkeyPatch
):
    server.finish()
    folder = server.kit.folder
    (folder / "evil.py").write_text(
        "from pathlib import Path\nPath(__file__).with_name('harm').touch()\n"
    )
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "path", ["", *sys.path])
    path = folder / "made" / "tiny" / "app" / "config" / "study.toml"
    path.write_text(path.read_text().replace('"pflsynth"', '"evil:Evil"'))
    archive = shutil.make_archive(str(folder / "changed"), "zip", folder / "made")
    Path(archive).rename(server.stored / "data")
    assert settle_lost_jobs(server.kit) == {JOB: ABANDONED}
    assert not (folder / "harm").exists()


def test_a_result_that_was_stored_already_stays_as_it_is(server: LostServer):
    server.finish()
    (server.stored / "workspace").write_text("stored")
    shutil.rmtree(server.kit.folder / JOB)
    assert settle_lost_jobs(server.kit) == {JOB: COMPLETED}
    assert (server.stored / "workspace").read_text() == "stored"


def unfinished(server: LostServer) -> None:
    (server.run / "scores.csv").unlink()


def gone_on(server: LostServer) -> None:
    Journal(server.run / "journal.jsonl").append(RoundFinished(2, "", None, 1, 1.0))


def of_another_study(server: LostServer) -> None:
    (server.run / "study.toml").write_text(to_toml(tiny("seed=99", sites=2)))


def finished_before(server: LostServer) -> None:
    shutil.rmtree(server.stored)
    server.store(began=-60.0)


def damaged_job(server: LostServer) -> None:
    (server.stored / "data").write_bytes(b"PK")


def damaged_journal(server: LostServer) -> None:
    (server.run / "journal.jsonl").write_text("{}\n")


def run_gone(server: LostServer) -> None:
    shutil.rmtree(server.run)


@pytest.mark.parametrize(
    "harm",
    [
        *(unfinished, gone_on, of_another_study, finished_before),
        *(damaged_job, damaged_journal, run_gone),
    ],
)
def test_any_other_job_is_abandoned_and_its_folder_stays(
    harm: Callable[[LostServer], None], server: LostServer
):
    server.finish()
    harm(server)
    assert settle_lost_jobs(server.kit) == {JOB: ABANDONED}
    assert (server.kit.folder / JOB / "log.txt").exists()
    assert not (server.stored / "workspace").exists()


def test_jobs_that_are_over_or_not_begun_are_left_alone(server: LostServer):
    server.finish()
    server.store(OTHER, "SUBMITTED")
    before = (server.kit.folder / STORE / OTHER / "meta").read_bytes()
    assert settle_lost_jobs(server.kit) == {JOB: COMPLETED}
    assert (server.kit.folder / STORE / OTHER / "meta").read_bytes() == before
