"""A provisioned federation: mutual TLS, and server and sites in processes of their own; every step
by its command.
"""

import json
import subprocess
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from grandrounds.core.events import Failed, RunFinished
from grandrounds.runs.loop import run_study as run
from grandrounds.study.study import Study
from tests.golden.test_golden import ARMS
from tests.helpers.command import PROGRAM
from tests.helpers.federation import digests
from tests.helpers.flare_federation import (
    LONG,
    SERVER,
    Town,
    commanded,
    differing,
    listening,
    made_once,
    needs_flare,
    provisioned,
    small,
    wait_until,
    written,
)
from tests.helpers.grids import with_representatives

FEDERATIONS = {
    "star": ("pflsynth",),
    "without-server": ("fedavg@swarm", "fedavg@cyclic", "fedavg@split"),
}
pytestmark = [
    *(pytest.mark.engine, pytest.mark.slow, needs_flare),
    pytest.mark.parametrize("federation", with_representatives(FEDERATIONS, ("star",))),
]

BY_NVFLARE = "fedavg@cyclic"  # submitted by its own command
STATUS, LINES, LOOKED = "status.json", "listening.json", "looked.json"


def play(arms: Sequence[str], folder: Path) -> None:
    """Play studies one after the other, and fetch what came of them."""
    studies = {arm: small(*ARMS[arm]) for arm in arms}
    first, *others = arms
    with provisioned(studies[first], folder) as town:
        town.start(SERVER, "alder", "birch")
        jobs = {first: submit_and_look(town, studies[first])}
        for arm in others:
            town.accept(studies[arm])
            submit = submit_by_nvflare if arm == BY_NVFLARE else submit_by_us
            jobs[arm] = submit(town, studies[arm])
        wait_until(lambda: all_over(town))  # the server files a result after the run's last line
        (folder / STATUS).write_text(told(town, "status"))
        if len(arms) == 1:
            (folder / LOOKED).write_text(json.dumps(looked(town, jobs[first], folder)))
        for arm, job in jobs.items():
            told(town, "fetch", job, "--out", folder / arm)


def all_over(town: Town) -> bool:
    """Tell whether every job has ended."""
    jobs = json.loads(told(town, "status"))["jobs"]
    return all(job["status"] not in ("RUNNING", "ENDING") for job in jobs)


def looked(town: Town, job: str, folder: Path) -> dict[str, tuple[int, str, str]]:
    """What a site's kit gets to see, and what it tries in vain."""
    tried = {
        "status": ("status", "--json"),
        "abort": ("abort", job),
        "fetch": ("fetch", job, "--out", folder / "fetched"),
    }
    ends = {
        name: commanded("federation", *words, "--kit", town.kit("alder"))
        for name, words in tried.items()
    }
    return {name: (done.code, done.out, done.err) for name, done in ends.items()}


def submit_and_look(town: Town, study: Study) -> str:
    """Accept and submit a study by the commands, and note where the server listens meanwhile."""
    path = written(study, town.folder)
    first, *others = study.trainers
    done = commanded("site", "accept", path, "--kit", town.kit(first), "--json")
    assert json.loads(done.out)["site"] == first
    town.accept(study, *others)
    wait_until(lambda: listening(town.processes[SERVER].pid))
    job = json.loads(told(town, "submit", path, "--no-wait"))["job"]
    seen = set[tuple[str, int]]()

    def looked() -> bool:
        seen.update(listening(town.processes[SERVER].pid))
        return any(isinstance(event, RunFinished | Failed) for event in town.told(study))

    wait_until(looked)
    (town.folder / LINES).write_text(json.dumps({"port": town.port, "seen": sorted(seen)}))
    return job


def submit_by_us(town: Town, study: Study) -> str:
    """Submit a study by our command, and wait for its end."""
    done = town.submit(study)
    assert done.code == 0, done.err
    return str(json.loads(done.out)["job"])


def submit_by_nvflare(town: Town, study: Study) -> str:
    """Submit the exported job and watch it by NVFlare's own command."""
    exported = town.folder / "job"
    done = commanded("federation", "export", written(study, town.folder), "--out", exported)
    assert done.code == 0, done.err
    job = str(nvflare(town, "submit", "-j", exported)["job_id"])
    nvflare(town, "wait", job)
    return job


def nvflare(town: Town, *words: str | Path) -> dict[str, Any]:
    """What NVFlare's own command tells by JSON."""
    program = PROGRAM.with_name("nvflare")
    kit = ("--startup-kit", town.kit("admin"))
    done = subprocess.run(
        [program, "--format", "json", "job", *words, *kit],
        capture_output=True,
        text=True,
        check=True,
        timeout=LONG,
    )
    return json.loads(done.stdout.splitlines()[-1])["data"]


def told(town: Town, *words: str | Path) -> str:
    """What a command of the federation tells by JSON."""
    done = commanded("federation", *words, "--kit", town.kit("admin"), "--json")
    assert done.code == 0, done.err
    return done.out


@pytest.fixture
def played(federation: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder with a run folder for each study of a federation."""
    arms = FEDERATIONS[federation]
    return made_once(tmp_path_factory, f"provisioned-{federation}", partial(play, arms))


def test_a_study_across_hospitals_has_the_digests_and_scores_of_this_process(
    federation: str, played: Path, tmp_path: Path
):
    for arm in FEDERATIONS[federation]:
        run(small(*ARMS[arm]), tmp_path / arm)
        assert len(set(digests(played / arm))) == 2
        assert differing(tmp_path / arm, played / arm) == []
        assert (played / arm / "report.html").stat().st_size > 10_000


def test_what_is_fetched_holds_no_state_and_no_images_of_a_site(federation: str, played: Path):
    for arm in FEDERATIONS[federation]:
        files = {path.relative_to(played / arm).parts[0] for path in (played / arm).rglob("*")}
        assert "sites" not in files
        assert "state" not in files


def test_the_status_names_the_sites_that_are_connected_and_every_job(federation: str, played: Path):
    status = json.loads((played / STATUS).read_text())
    assert status["sites"] == ["alder", "birch"]
    assert [job["status"] for job in status["jobs"]] == ["FINISHED:COMPLETED"] * len(
        FEDERATIONS[federation]
    )


def test_a_site_s_kit_sees_the_status_and_the_server_lets_it_do_nothing_else(
    federation: str, played: Path
):
    if federation != "star":
        pytest.skip("asked of one federation")
    ends = json.loads((played / LOOKED).read_text())
    code, out, err = ends.pop("status")
    assert (code, json.loads(out)["sites"]) == (0, ["alder", "birch"]), err
    for code, _, err in ends.values():
        assert code == 2
        assert "the server does not let this kit do that" in err
        assert err.count("\n") == 1
    assert not (played / "fetched").exists()


def test_the_server_listens_on_this_machine_alone(played: Path):
    lines = json.loads((played / LINES).read_text())
    seen: Sequence[tuple[str, int]] = lines["seen"]
    assert {address for address, _ in seen} <= {"127.0.0.1", "::1"}
    assert ["127.0.0.1", lines["port"]] in seen
