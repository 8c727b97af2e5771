"""The process of a kit: where it stores jobs, and how it ends when it is asked to."""

import json
import os
import shutil
import signal
import subprocess
from pathlib import Path

import psutil
import pytest

from grandrounds.core.errors import BadSite
from grandrounds.core.events import RoundFinished
from grandrounds.core.processes import is_held
from tests.helpers.command import PROGRAM
from tests.helpers.flare_federation import (
    SERVER,
    commanded,
    ends_with_the_tests,
    free_port,
    needs_flare,
    provisioned,
    small,
    wait_until,
    written,
)

pytest.importorskip("nvflare", reason="NVIDIA FLARE is not installed")

from grandrounds.flare.job_store import STORE
from grandrounds.flare.kit import Kit
from grandrounds.flare.processes import begin, kit_command
from grandrounds.flare.provision import provision_kits

pytestmark = needs_flare
SOON = 10.0  # seconds: Docker kills a container's processes so long after it asked them to end


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return provision_kits(small(), "localhost", tmp_path_factory.mktemp("made") / "kits")[SERVER]


@pytest.fixture
def server(made: Path, tmp_path: Path) -> Kit:
    return Kit(Path(shutil.copytree(made, tmp_path / 'a "new" kit')))


def places(kit: Kit) -> list[str]:
    """Where a server's settings let NVFlare store jobs and snapshots."""
    settings = json.loads((kit.local / "resources.json").read_text())
    [manager] = [each for each in settings["components"] if each["id"] == "job_manager"]
    snapshots = settings["snapshot_persistor"]["args"]["storage"]["args"]["root_dir"]
    return [manager["args"]["uri_root"], snapshots]


def in_kit(kit: Kit) -> list[str]:
    return [str(kit.folder / STORE), str(kit.folder / "storage" / "snapshot-storage")]


def test_a_server_stores_its_jobs_in_its_own_kit_also_where_the_kit_was_moved(server: Kit):
    assert [Path(place).parent for place in places(server)] == [Path("/tmp/nvflare")] * 2
    kit_command(server)
    assert places(server) == in_kit(server)
    moved = Kit(server.folder.rename(server.folder.with_name("moved")))
    assert str(moved.folder) in kit_command(moved)
    assert places(moved) == in_kit(moved)


def test_a_store_that_somebody_has_chosen_stays(server: Kit):
    path = server.local / "resources.json"
    path.write_text(path.read_text().replace("/tmp/nvflare/jobs", "/srv/jobs"))
    kit_command(server)
    assert places(server) == ["/srv/jobs-storage", in_kit(server)[1]]


def test_settings_that_are_right_are_not_written_again(server: Kit):
    kit_command(server)
    path = server.local / "resources.json"
    path.chmod(0o400)
    before = path.stat()
    kit_command(server)
    assert path.stat().st_ino == before.st_ino


def test_a_kit_that_nvflare_s_own_script_runs_is_not_started_again(server: Kit):
    (server.startup / "sub_start.sh").write_text("sleep 60 & wait\n")
    with subprocess.Popen(["bash", server.startup / "sub_start.sh"]) as script:
        try:
            (server.folder / "daemon_pid.fl").write_text(f"{script.pid}\n")
            with pytest.raises(BadSite, match=r"runs already, by NVFlare's startup/start\.sh"):
                begin(server)
        finally:
            for each in reversed(family(script.pid)):
                each.kill()
    assert not is_held(server.running)
    (server.folder / "pid.fl").write_text("what is no number")
    (server.folder / "daemon_pid.fl").write_text(f"{os.getpid()}\n")  # used again by another
    os.close(begin(server))


def family(process: int) -> list[psutil.Process]:
    parent = psutil.Process(process)
    return [parent, *parent.children(recursive=True)]


def assert_ends_soon(process: "subprocess.Popen[bytes]", others: int = 1) -> None:
    """A service's manager asks a process to end; it does, with at least so many others."""
    all_of_it = family(process.pid)
    assert len(all_of_it) > others
    process.send_signal(signal.SIGTERM)
    process.wait(SOON)
    _, alive = psutil.wait_procs(all_of_it[1:], timeout=SOON)
    running = [each for each in alive if each.status() != psutil.STATUS_ZOMBIE]  # yet to be reaped
    assert not running, [each.cmdline() for each in running]


@pytest.mark.engine
@pytest.mark.slow
def test_sigterm_ends_a_server_with_the_process_that_tells_its_health(tmp_path: Path):
    out = tmp_path / "kits"
    kit = provision_kits(small(), "localhost", out, port=free_port())[SERVER]
    words = [PROGRAM, "federation", "start", kit, "--health", "0"]
    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen(words, stdout=log, stderr=log, preexec_fn=ends_with_the_tests)
    try:
        wait_until(lambda: "Server started" in (tmp_path / "log").read_text())
        assert_ends_soon(process)
    finally:
        process.kill()
        process.wait()
    assert not is_held(Kit(kit).running)


@pytest.mark.engine
@pytest.mark.slow
@pytest.mark.full
def test_sigterm_ends_a_party_with_the_process_of_its_job(tmp_path: Path):
    study = small("rounds=200")
    with provisioned(study, tmp_path / "town") as town:
        town.start(SERVER, "alder", "birch")
        town.accept(study)
        words = (written(study, tmp_path), "--kit", town.kit("admin"), "--no-wait")
        wait_until(lambda: commanded("federation", "submit", *words).code == 0)
        wait_until(lambda: any(isinstance(event, RoundFinished) for event in town.told(study)))
        for name in ("alder", "birch", SERVER):
            assert_ends_soon(town.processes.pop(name))
