"""What finished jobs leave behind: what goes, what stays, and what lies behind a link."""

import json
import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from grandrounds.core.processes import hold
from grandrounds.core.run_folder import RunFolder
from tests.helpers.command import Done, inside
from tests.helpers.flare_federation import needs_flare

pytest.importorskip("nvflare", reason="NVIDIA FLARE is not installed")

from grandrounds.flare.job import IN_USE
from grandrounds.flare.job_store import STORE, stored_jobs
from grandrounds.flare.kit import Kit
from grandrounds.flare.retention import Leftover, leftovers, remove_leftovers

pytestmark = needs_flare

JOB, OTHER = (f"{n}8bf27a1-768b-41b1-9e43-13815a268c28" for n in "ab")
RUN = "tiny-61f43d861a7a"
OLD = 40.0  # days
Clean = Callable[..., Done]


def kit_of(kind: str, folder: Path) -> Kit:
    """A kit of these files alone that say whose it is."""
    startup = folder / "startup"
    startup.mkdir(parents=True)
    (startup / "rootCA.pem").touch()
    settings: dict[str, Any] = {"client": {"fqsn": "alder"}} if kind == "client" else {}
    address = {"service": {"target": "localhost:8002"}, "identity": "localhost"}
    (startup / f"fed_{kind}.json").write_text(json.dumps(settings | {"servers": [address]}))
    return Kit(folder)


def put(kit: Kit, *paths: str, text: str = "x" * 1000) -> None:
    for path in paths:
        file = kit.folder / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)


def aged(kit: Kit, days: float = OLD) -> None:
    """Make all in a kit look as if it was written so long ago."""
    then = time.time() - days * 86400
    for path in (kit.folder, *kit.folder.rglob("*")):
        os.utime(path, (then, then), follow_symlinks=False)


def job_folder(kit: Kit, job: str = JOB, run: str = RUN) -> None:
    config = {"executors": [{"tasks": ["*"], "executor": {"path": "x", "args": {"run": run}}}]}
    put(kit, f"{job}/app_alder/config/config_fed_client.json", text=json.dumps(config))
    put(kit, f"{job}/log.txt", f"{job}/{IN_USE}")


def stored(kit: Kit, job: str, status: str) -> None:
    meta = {"status": status, "submit_time": 1.0, "job_id": job}
    put(kit, f"{STORE}/{job}/meta", text=json.dumps(meta))
    put(kit, f"{STORE}/{job}/data", f"{STORE}/{job}/workspace")


@pytest.fixture
def site(tmp_path: Path) -> Kit:
    """A site's kit, of a job and a run that ended long ago, and whose log still tells of both."""
    kit, own = kit_of("client", tmp_path / "alder"), f"grandrounds/{RUN}/sites/alder"
    job_folder(kit)
    put(kit, f"{own}/private.safetensors", f"{own}/state/round-000003.safetensors")
    put(kit, f"{own}/ledger.jsonl", f"grandrounds/{RUN}/study.toml", "local/site.toml", "log.txt")
    aged(kit)
    return kit


@pytest.fixture
def server(tmp_path: Path) -> Kit:
    """A server's kit, of jobs and a run that ended long ago."""
    kit = kit_of("server", tmp_path / "server")
    stored(kit, JOB, "FINISHED:COMPLETED")
    job_folder(kit)
    put(kit, f"grandrounds/{RUN}/scores.csv", f"grandrounds/{RUN}/journal.jsonl", "transfer/x/y")
    put(kit, "storage/snapshot-storage/z", "audit.log")
    aged(kit)
    return kit


@pytest.fixture
def clean(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Clean:
    return lambda *words: inside(monkeypatch, capsys, *words)


def files(kit: Kit) -> set[str]:
    return {
        str(path.relative_to(kit.folder))
        for path in kit.folder.rglob("*")
        if path.is_symlink() or not path.is_dir()
    }


def reasons(kit: Kit, *, runs: bool = False, days: int = 30) -> dict[str, str]:
    return {each.where: each.stays for each in leftovers(kit, days=days, runs=runs)}


@pytest.mark.slow
def test_a_site_s_job_goes_and_its_run_stays_unless_it_is_asked_for(site: Kit, clean: Clean):
    before = files(site)
    done = clean("site", "clean", "--kit", site.folder, "--dry-run")
    assert (done.code, files(site)) == (0, before)
    assert f"{JOB}\n  job's folder, " in done.out
    assert "40 days old; goes" in done.out
    assert "stays: only with --runs" in done.out
    assert "1 of 2, " in done.out
    done = clean("site", "clean", "--kit", site.folder)
    assert done.code == 0
    assert before - files(site) == {name for name in before if name.startswith(JOB)}


def test_of_a_site_s_run_the_log_of_what_it_was_asked_always_stays(site: Kit, clean: Clean):
    log = site.folder / "grandrounds" / RUN / "sites" / "alder" / "ledger.jsonl"
    text = log.read_text()
    done = clean("site", "clean", "--kit", site.folder, "--runs", "--json")
    told = json.loads(done.out)
    assert (told["removed"], told["dry_run"]) == (2, False)
    assert told["bytes"] > 4000
    assert log.read_text() == text
    assert [path for path in files(site) if "grandrounds" in path] == [
        f"grandrounds/{RUN}/sites/alder/ledger.jsonl"
    ]
    assert {"local/site.toml", "log.txt", "startup/rootCA.pem"} <= files(site)
    assert reasons(site, runs=True) == {}


def test_what_was_written_to_lately_stays(site: Kit):
    (site.folder / JOB / "log.txt").touch()
    assert reasons(site)[JOB] == "younger than 30 days"
    aged(site, 29.9)
    assert reasons(site)[JOB] == "younger than 30 days"
    assert reasons(site, days=29)[JOB] == ""


@pytest.mark.parametrize("days", ["0", "-1"])
def test_less_than_a_day_is_refused(days: str, site: Kit, clean: Clean):
    done = clean("site", "clean", "--kit", site.folder, "--older-than", days)
    assert (done.code, done.out) == (2, "")
    assert f"--older-than {days}: must be 1 day or more" in done.err


@contextmanager
def held(path: Path) -> Iterator[None]:
    """Hold a file as a living process does."""
    lock = hold(path)
    assert lock is not None
    try:
        yield
    finally:
        os.close(lock)


def test_a_job_and_its_run_stay_as_long_as_the_job_s_process_lives(site: Kit):
    """However old the files are: a round may take a month."""
    before, listed = files(site), leftovers(site, runs=True)
    with (
        held(site.folder / JOB / IN_USE),
        held(site.folder / "grandrounds" / RUN / RunFolder.lock),
    ):
        assert set(reasons(site, runs=True).values()) == {"it is running"}
        assert remove_leftovers(site, listed) == []  # which were listed before it began
    assert before <= files(site)
    aged(site)
    assert set(reasons(site, runs=True).values()) == {""}


def test_the_run_that_a_living_job_names_stays(site: Kit):
    with held(site.folder / JOB / IN_USE):
        assert reasons(site, runs=True)[f"grandrounds/{RUN}"] == "it is running"


def test_a_run_that_can_be_resumed_stays(site: Kit, server: Kit):
    (site.folder / "grandrounds" / RUN / "sites/alder/private.safetensors").unlink()
    (server.folder / "grandrounds" / RUN / "scores.csv").unlink()
    for kit in (site, server):
        aged(kit)
        assert reasons(kit, runs=True)[f"grandrounds/{RUN}"] == "it can be resumed"


def test_a_server_s_results_folders_and_broken_transfers_go(server: Kit, clean: Clean):
    done = clean("federation", "clean", "--kit", server.folder)
    assert done.code == 0, done.err
    assert stored_jobs(server) == []
    assert {path for path in files(server) if not path.startswith("startup")} == {
        *(f"grandrounds/{RUN}/{name}" for name in ("scores.csv", "journal.jsonl")),
        *("storage/snapshot-storage/z", "audit.log"),
    }
    assert clean("federation", "clean", "--kit", server.folder, "--runs").code == 0
    assert not list((server.folder / "grandrounds").iterdir())


@pytest.mark.parametrize("status", ["SUBMITTED", "APPROVED", "DISPATCHED", "RUNNING"])
def test_a_job_that_its_server_has_not_ended_stays(status: str, server: Kit):
    stored(server, OTHER, status)
    job_folder(server, OTHER)
    aged(server)
    why = "the server has not ended it yet"
    found = reasons(server)
    assert (found[OTHER], found[f"{STORE}/{OTHER}"]) == (why, why)
    assert found[JOB] == found[f"{STORE}/{JOB}"] == ""


def test_under_a_server_that_runs_results_are_its_own_to_delete(server: Kit):
    with held(server.running):
        assert reasons(server)[f"{STORE}/{JOB}"] == "the server runs: use the admin's kit"


LINKED = (JOB, "grandrounds", f"grandrounds/{RUN}", "storage", STORE, f"{STORE}/{JOB}", "transfer")


@pytest.mark.parametrize("linked", LINKED)
def test_nothing_behind_a_link_is_touched(linked: str, server: Kit, tmp_path: Path):
    elsewhere = tmp_path / "elsewhere"
    shutil.move(server.folder / linked, elsewhere)
    (server.folder / linked).symlink_to(elsewhere)
    aged(server)
    before = sorted(elsewhere.rglob("*"))
    remove_leftovers(server, leftovers(server, runs=True))
    assert sorted(elsewhere.rglob("*")) == before
    assert (server.folder / linked).is_symlink()


def test_a_link_inside_what_goes_is_removed_and_not_followed(server: Kit, tmp_path: Path):
    secret = tmp_path / "images" / "secret"
    secret.parent.mkdir()
    secret.touch()
    for inside_of in (JOB, f"grandrounds/{RUN}", f"{STORE}/{JOB}"):
        (server.folder / inside_of / "link").symlink_to(secret.parent)
    aged(server)
    assert len(remove_leftovers(server, leftovers(server, runs=True))) == 4
    assert secret.exists()


@pytest.mark.parametrize("name", [".hidden", "a b", "con", "x" * 65, "ä"])
def test_a_folder_whose_name_no_run_has_stays(name: str, server: Kit):
    put(server, f"grandrounds/{name}/scores.csv")
    aged(server)
    assert reasons(server, runs=True)[f"grandrounds/{name}"] == "its name is no run's"


@pytest.mark.parametrize("where", ["..", f"../{JOB}", "/etc", f"{JOB}/../../x"])
def test_only_a_kit_s_own_listing_names_what_goes(where: str, site: Kit, tmp_path: Path):
    """No name from a job becomes a path: folders are listed, and compared with the rule."""
    config = {"executors": [{"executor": {"args": {"run": where}}}]}
    put(site, f"{JOB}/app_alder/config/config_fed_client.json", text=json.dumps(config))
    aged(site)
    found = leftovers(site, runs=True)
    assert {each.where for each in found} == {JOB, f"grandrounds/{RUN}"}


def test_each_kit_has_its_command(site: Kit, server: Kit, clean: Clean, tmp_path: Path):
    done = clean("federation", "clean", "--kit", site.folder)
    assert done.err.endswith("is a site's kit; give it to `grandrounds site clean`\n")
    done = clean("site", "clean", "--kit", server.folder)
    assert done.err.endswith("is not a site's kit; give it to `grandrounds federation clean`\n")
    (tmp_path / "admin" / "startup").mkdir(parents=True)
    (tmp_path / "admin" / "startup" / "rootCA.pem").touch()
    done = clean("federation", "clean", "--kit", tmp_path / "admin", "--runs")
    assert (done.code, done.out) == (2, "")
    assert "--runs is for the server's kit and a site's" in done.err


def test_what_a_list_says_of_size_and_age_is_so(site: Kit):
    [job] = [each for each in leftovers(site) if each.where == JOB]
    size = sum(path.lstat().st_size for path in (site.folder / JOB).rglob("*") if path.is_file())
    assert isinstance(job, Leftover)
    assert (job.bytes, round(job.days)) == (size, OLD)
