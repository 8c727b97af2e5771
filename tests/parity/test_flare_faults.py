"""What befalls a provisioned federation: after `resume` the digests are those of an undisturbed
run; before it, the failure card says what happened.
"""

import json
import os
import re
import resource
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing, suppress
from datetime import UTC, datetime, timedelta
from http.client import HTTPConnection
from pathlib import Path
from subprocess import Popen
from typing import Any

import pytest

from grandrounds.core.events import Failed, RunFinished, RunResumed
from grandrounds.core.ledger import read_ledger
from grandrounds.core.run_folder import RunFolder
from grandrounds.core.state import RoundStore
from grandrounds.runs.loop import run_study as run
from grandrounds.study.acceptance import FOLDER
from grandrounds.study.file import fingerprint
from grandrounds.study.study import Study
from tests.helpers.command import Done, started
from tests.helpers.federation import digests, rows
from tests.helpers.flare_federation import (
    LONG,
    SERVER,
    Town,
    commanded,
    differing,
    free_port,
    harmful,
    listening,
    needs_flare,
    provisioned,
    small,
    wait_until,
    written,
)

pytestmark = [pytest.mark.engine, pytest.mark.slow, pytest.mark.full, needs_flare]

NEVER_BEGUN = """
import time
from grandrounds.engines.remote import Timeouts
from grandrounds.flare import executor
executor.Timeouts = lambda: Timeouts(start=0.1)
executor.SiteExecutor("run")
time.sleep(600)
"""
DONE, LOST = "FINISHED:COMPLETED", "LOST"
SERVER_NAME = "localhost"  # in the server's certificate
SLOW = 26.0  # seconds; more than the silence of 20 after which a site is dead


@pytest.fixture(scope="module")
def town(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Town]:
    """A server and two sites that run."""
    with provisioned(small(), tmp_path_factory.mktemp("town")) as town:
        town.start(SERVER, "alder", "birch")
        yield town


def accepted(town: Town, seed: int, *overrides: str) -> Study:
    """A study of its own for one test, accepted by all."""
    study = small(f"seed={seed}", *overrides)
    town.accept(study)
    return study


def assert_resumes_as_undisturbed(town: Town, study: Study, folder: Path) -> None:
    """Round 1 is held by all; round 2 is played again, to the same bits."""
    done = town.submit(study, resume=True)
    assert done.code == 0, done.err
    assert RunResumed(1) in town.told(study)
    assert_as_undisturbed(town, study, folder)


def assert_as_undisturbed(town: Town, study: Study, folder: Path) -> None:
    run(study, folder / "undisturbed")
    assert len(set(digests(folder / "undisturbed"))) == 2
    assert differing(folder / "undisturbed", town.run(study)) == []


def card_of(town: Town, study: Study, done: Done) -> Failed:
    """The card of a run that stopped in round 2, as the journal and the command tell it."""
    failed = town.told(study)[-1]
    assert isinstance(failed, Failed)
    assert done.code == 1
    assert done.out.count("\n") == 1  # the job's id
    said = f"site 'birch' failed in round 2 (train): {failed.error}: {failed.message}"
    assert said in done.err
    assert (failed.site, failed.round, failed.stage) == ("birch", 2, "train")
    assert len(digests(town.run(study))) == 1
    return failed


def submitted_and_held(town: Town, study: Study, marker: Path, *killed: str) -> Done:
    """Submit, wait until a site stands still in its training, and kill."""
    path = written(study, town.folder)
    with started("federation", "submit", path, "--kit", town.kit("admin"), "--json") as job:
        wait_until_held(marker, job)
        town.kill(*killed)
        out, err = job.communicate(timeout=LONG)
        return Done(job.returncode, out, err)


def wait_until_held(marker: Path, command: Popen[str]) -> None:
    """Wait until someone stands still, as long as the command that waits for the job does."""
    wait_until(lambda: marker.exists() or command.poll() is not None)
    assert marker.exists(), command.communicate()


def test_a_site_killed_in_local_training_is_missed_in_seconds_and_the_run_resumes(
    town: Town, tmp_path: Path
):
    study, marker = accepted(town, 11), tmp_path / "held"
    with town.under("birch", harm=harmful(tmp_path / "harm", f"hold(2, {str(marker)!r})")):
        done = submitted_and_held(town, study, marker, "birch")
    failed = card_of(town, study, done)
    assert failed.error == "SiteSilent"
    assert re.match(r"no sign of life for \d+ s: 'birch' ", failed.message)
    assert_resumes_as_undisturbed(town, study, tmp_path)


def test_a_site_killed_while_it_sends_is_missed_and_the_run_resumes(town: Town, tmp_path: Path):
    """It has kept round 2 by then, which nobody else has got."""
    study, marker = accepted(town, 18, "method.kind=fedavg", "task.width=44"), tmp_path / "held"
    harm = harmful(tmp_path / "harm", f"hold_sending(2, {str(marker)!r})")
    with town.under("birch", harm=harm):
        done = submitted_and_held(town, study, marker, "birch")
    failed = card_of(town, study, done)
    assert failed.error == "SiteSilent"
    assert RoundStore(town.run(study, "birch") / "sites" / "birch" / "state").rounds() == (1, 2)
    assert_resumes_as_undisturbed(town, study, tmp_path)


@pytest.mark.parametrize("others", [(), ("alder", "birch")], ids=["server", "everything"])
def test_what_is_killed_in_a_round_is_started_again_and_the_run_resumes(
    others: tuple[str, ...], town: Town, tmp_path: Path
):
    study, marker = accepted(town, 12 + 10 * len(others)), tmp_path / "held"
    with town.under("birch", harm=harmful(tmp_path / "harm", f"hold(2, {str(marker)!r})")):
        done = submitted_and_held(town, study, marker, SERVER, *others)
    assert_nothing_is_lost(town, study, done)
    town.kill("alder")
    town.start(SERVER, "alder")
    wait_until(lambda: status_of(town, json.loads(done.out)["job"]))
    assert status_of(town, json.loads(done.out)["job"]) == LOST
    assert_resumes_as_undisturbed(town, study, tmp_path)


def test_a_server_killed_during_a_checkpoint_resumes_from_the_one_before(
    town: Town, tmp_path: Path
):
    study, marker = accepted(town, 19), tmp_path / "held"
    harm = harmful(tmp_path / "harm", f"hold_saving(2, {str(marker)!r})")
    with town.under(SERVER, harm=harm):
        town.kill("alder", "birch")
        town.start("alder", "birch")
        done = submitted_and_held(town, study, marker, SERVER)
        assert_nothing_is_lost(town, study, done, told=2)
        state = town.run(study) / "state"
        assert RoundStore(state).rounds() == (1,)
        assert [path.suffix for path in state.glob(".round-000002*")] == [".tmp"]
    town.kill("alder", "birch")
    town.start("alder", "birch")
    assert_resumes_as_undisturbed(town, study, tmp_path)


def test_a_server_killed_after_its_run_s_last_line_says_finished_and_gives_the_result(
    town: Town, tmp_path: Path
):
    """NVFlare's own list would call the job running for ever."""
    study, marker = accepted(town, 23), tmp_path / "held"
    with town.under(SERVER, harm=harmful(tmp_path / "harm", f"hold_finished({str(marker)!r})")):
        town.kill("alder", "birch")
        town.start("alder", "birch")
        done = submitted_and_held(town, study, marker, SERVER)
        assert done.code == 1
        assert isinstance(town.told(study)[-1], RunFinished)
        job = json.loads(done.out)["job"]
        assert (town.kit(SERVER) / job).exists()
    wait_until(lambda: status_of(town, job))
    assert status_of(town, job) == DONE
    assert f"job {job} was lost with this server; it is {DONE} now" in town.log(SERVER).read_text()
    fetched = commanded(
        *("federation", "fetch", job, "--kit", town.kit("admin"), "--out", tmp_path / "run")
    )
    assert fetched.code == 0, fetched.err
    assert differing(tmp_path / "run", town.run(study)) == []
    assert not (town.kit(SERVER) / job).exists()
    town.kill("alder", "birch")
    town.start("alder", "birch")
    assert_as_undisturbed(town, study, tmp_path)


def status_of(town: Town, job: str) -> str:
    """What `federation status` says of a job; nothing where the server does not answer."""
    done = commanded("federation", "status", "--kit", town.kit("admin"), "--json")
    found = json.loads(done.out)["jobs"] if done.code == 0 else []
    return "".join(each["status"] for each in found if each["id"] == job)


def assert_nothing_is_lost(town: Town, study: Study, done: Done, *, told: int = 1) -> None:
    """The command says in a sentence that the server is gone; the journal tells of its rounds."""
    assert done.code == 1
    assert done.err.count("\n") == 1
    assert len(digests_told(town, study)) == told


def digests_told(town: Town, study: Study) -> list[object]:
    """The rounds that a killed server's journal tells of; its tables were never written."""
    assert not (town.run(study) / "digests.csv").exists()
    return [event for event in town.told(study) if type(event).__name__ == "RoundFinished"]


def test_no_round_begins_before_every_site_has_accepted_this_very_study(town: Town, tmp_path: Path):
    study, other = small("seed=13"), accepted(town, 14)
    town.accept(study, "birch")
    done = town.submit(study)
    assert done.code == 1
    assert (
        "site 'alder' cannot open: it has not accepted this study; look at it and sign it there: "
        "grandrounds site accept STUDY --kit KIT" in done.err
    )
    words = town.kit("alder") / "local" / FOLDER
    word = (words / f"{fingerprint(other)}.json").read_text()
    (words / f"{fingerprint(study)}.json").write_text(word)
    done = town.submit(study)
    assert done.code == 1
    assert f"site 'alder' accepted another study ({fingerprint(other)[:12]}...)" in done.err
    assert not town.run(study).exists()
    town.accept(study, "alder")
    assert town.submit(study).code == 0
    assert_as_undisturbed(town, study, tmp_path)


def test_a_kit_of_another_federation_is_not_let_in(town: Town, tmp_path: Path):
    with provisioned(small(), tmp_path / "other", port=town.port) as other:
        town.kill("alder")
        known = connections(town, "alder")
        other.start("alder")
        wait_until(lambda: "CERTIFICATE_VERIFY_FAILED" in other.log("alder").read_text())
        assert connections(town, "alder") == known
        foreign = other.kit("alder") / "startup"
    for ours in ("alder", "birch"):
        assert is_let_in(town, town.kit(ours) / "startup")
    assert not is_let_in(town, foreign)
    assert not is_let_in(town, None)
    town.start("alder")
    wait_until(lambda: connections(town, "alder") > known)


def connections(town: Town, site: str) -> int:
    """How many connections of a site the server has taken so far."""
    return town.log(SERVER).read_text().count(f" SSL {site}] is created")


def is_let_in(town: Town, startup: Path | None) -> bool:
    """Whether the server talks to who trusts it, and shows this certificate."""
    trusted = town.kit("alder") / "startup" / "rootCA.pem"
    context = ssl.create_default_context(cafile=str(trusted))
    if startup:
        context.load_cert_chain(startup / "client.crt", startup / "client.key")
    with socket.create_connection(("127.0.0.1", town.port), timeout=10.0) as line:
        try:
            with context.wrap_socket(line, server_hostname="localhost") as secure:
                secure.sendall(b"GET / HTTP/1.0\r\n\r\n")
                return bool(secure.recv(1))
        except (ssl.SSLError, ConnectionResetError):
            return False


def test_a_site_slower_than_the_silence_is_waited_for_as_long_as_it_lives(
    town: Town, tmp_path: Path
):
    study = accepted(town, 15)
    with town.under("birch", harm=harmful(tmp_path / "harm", f"slow(2, {SLOW})")):
        done = town.submit(study)
    assert done.code == 0, done.err
    [seconds] = [
        float(row["seconds"])
        for row in rows(town.run(study) / "rounds.csv")
        if (row["round"], row["site"]) == ("2", "birch")
    ]
    assert seconds > SLOW
    assert_as_undisturbed(town, study, tmp_path)


def test_a_run_that_waits_goes_on_by_itself_when_who_was_lost_is_back(town: Town, tmp_path: Path):
    """First a site is killed, then the server; nobody gives a command but the first."""
    study, marker = accepted(town, 21), tmp_path / "held"
    harm = harmful(tmp_path / "harm", f"hold(2, {str(marker)!r})")
    words = ("federation", "submit", written(study, town.folder), "--on-loss", "wait")
    with (
        town.under("birch", harm=harm),
        started(*words, "--kit", town.kit("admin")) as command,
    ):
        wait_until_held(marker, command)
        town.kill("birch")
        told_of(command, "waiting for birch")
        marker.unlink()
        town.start("birch", harm=harm)
        wait_until_held(marker, command)
        town.kill(SERVER)
        told_of(command, "waiting for the server")
        town.kill("alder", "birch")
        town.start(SERVER, "alder", "birch")
        out, err = command.communicate(timeout=LONG)
    assert command.returncode == 0, err
    assert out.count("job: ") == 3
    assert_as_undisturbed(town, study, tmp_path)


def told_of(command: Popen[str], what: str) -> None:
    """Read what a command says until it has said this."""
    assert command.stderr
    said = list[str]()
    for line in command.stderr:
        said.append(line)
        if what in line:
            return
    raise AssertionError("".join(said))


def test_a_site_s_health_follows_its_server_and_ends_with_its_process(town: Town):
    """Started once more, the kit's process refuses: two would answer in one name."""
    town.kill("alder")
    with started("federation", "start", town.kit("alder"), "--health", "0") as site:
        assert site.stdout
        [address] = re.findall(r"http://127\.0\.0\.1:(\d+)/health", site.stdout.readline())
        wait_until(lambda: asked(int(address), "/health") == (200, "ok\n"))
        assert "\ngrandrounds_healthy 1\n" in asked(int(address), "/metrics")[1]
        again = commanded("federation", "start", town.kit("alder"))
        assert (again.code, again.out) == (2, "")
        assert again.err.endswith("alder: its process runs already; end that one first\n")
        town.kill(SERVER)
        wait_until(lambda: asked(int(address), "/health")[0] == 503)
        town.start(SERVER)
        wait_until(lambda: asked(int(address), "/health")[0] == 200)
        site.kill()
        site.wait()
        wait_until(lambda: asked(int(address), "/health")[0] == 0)
    town.start("alder")


def asked(port: int, page: str) -> tuple[int, str]:
    """The answer of a party's health; 0 where nobody answers."""
    with closing(HTTPConnection("127.0.0.1", port, timeout=10)) as line, suppress(OSError):
        line.request("GET", page)
        with line.getresponse() as answer:
            return answer.status, answer.read().decode()
    return 0, ""


def test_looking_at_a_job_leaves_no_error_in_the_server_s_log(town: Town):
    """While it starts, runs and ends: a question that nobody answers would be one."""
    log = town.kit(SERVER) / "error_log.txt"
    before = log.read_text() if log.exists() else ""  # made with the first error
    assert town.submit(accepted(town, 24)).code == 0
    said = log.read_text().removeprefix(before)
    assert [line for line in said.splitlines() if "app" in line] == []


def test_what_an_ended_job_left_is_removed_and_what_a_running_one_needs_stays(
    town: Town, tmp_path: Path
):
    """However old the files look."""
    study, marker = accepted(town, 25), tmp_path / "held"
    harm = harmful(tmp_path / "harm", f"hold(2, {str(marker)!r})")
    words = ("federation", "submit", written(study, town.folder), "--kit", town.kit("admin"))
    with town.under("birch", harm=harm), started(*words, "--json") as command:
        wait_until_held(marker, command)
        assert command.stdout
        job = json.loads(command.stdout.readline())["job"]
        for party in ("birch", SERVER):
            aged(town.kit(party) / job)
        assert cleaned(town, "site", "birch")[job] == "it is running"
        assert cleaned(town, "federation", SERVER)[job] == "it is running"
        assert cleaned(town, "federation", "admin")[job] == "the server has not ended it yet"
        town.kill("birch")
        command.communicate(timeout=LONG)
    wait_until(lambda: status_of(town, job).startswith("FINISHED"))
    aged(town.kit("birch") / job)
    assert cleaned(town, "site", "birch")[job] == ""
    assert not (town.kit("birch") / job).exists()
    meta = town.kit(SERVER) / "storage" / "jobs-storage" / job / "meta"
    long_ago = {"submit_time": 0.0, "start_time": "1970-01-01T00:00:00+00:00"}
    meta.write_text(json.dumps(json.loads(meta.read_text()) | long_ago))
    assert cleaned(town, "federation", "admin")[job] == ""
    assert status_of(town, job) == ""
    assert not meta.parent.exists()
    assert town.submit(study, resume=True).code == 0
    assert_as_undisturbed(town, study, tmp_path)


def cleaned(town: Town, group: str, party: str) -> dict[str, str]:
    """Remove what jobs left at a party; give why each thing stayed, empty where it went."""
    done = commanded(group, "clean", "--kit", town.kit(party), "--json")
    assert done.code == 0, done.err
    return {each["where"]: each["stays"] for each in json.loads(done.out)["found"]}


def aged(folder: Path) -> None:
    """Make all in a folder look as if it was written forty days ago."""
    then = time.time() - 40 * 86400
    for path in (folder, *folder.rglob("*")):
        os.utime(path, (then, then))


def test_an_answer_that_comes_cut_or_twice_is_asked_for_again(town: Town, tmp_path: Path):
    study, marker = accepted(town, 20), tmp_path / "harmed"
    with town.under("birch", harm=harmful(tmp_path / "harm", f"garble(2, {str(marker)!r})")):
        done = town.submit(study)
    assert done.code == 0, done.err
    assert marker.read_text().split() == ["cut", "replayed"]
    assert_as_undisturbed(town, study, tmp_path)


def test_a_site_whose_certificate_has_expired_is_not_let_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    from grandrounds.flare import authority
    from grandrounds.flare.provision import provision_kits

    issue, now = authority.generate_cert, datetime.now(UTC)
    expired = {"not_valid_before": now - timedelta(2), "not_valid_after": now - timedelta(1)}

    def issued(subject: Any, *others: Any, **settings: Any) -> Any:
        return issue(subject, *others, **settings | (expired if subject.name == "alder" else {}))

    monkeypatch.setattr(authority, "generate_cert", issued)
    town = Town(tmp_path, free_port())
    provision_kits(small(), "localhost", tmp_path / "kits", port=town.port)
    try:
        town.start(SERVER)
        ours = ("127.0.0.1", town.port)
        wait_until(lambda: ours in listening(town.processes[SERVER].pid))
        assert is_let_in(town, town.kit("birch") / "startup")
        assert not is_let_in(town, town.kit("alder") / "startup")
    finally:
        town.kill(SERVER)


def small_files() -> None:
    """Let no file grow beyond 200 kB: what a disk does that is full."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))


def test_a_site_whose_disk_is_full_says_so_and_the_run_resumes(town: Town, tmp_path: Path):
    study = accepted(town, 16)
    with town.under("birch", limit=small_files):
        done = town.submit(study)
    failed = town.told(study)[-1]
    assert isinstance(failed, Failed)
    assert (failed.site, failed.round, failed.error) == ("birch", 1, "DiskFailed")
    assert "File too large" in failed.message
    assert failed.message in done.err
    assert town.submit(study, resume=True).code == 0
    assert_as_undisturbed(town, study, tmp_path)


def test_a_reply_with_a_number_that_is_none_stops_the_run_with_a_card(town: Town, tmp_path: Path):
    study = accepted(town, 17)
    with town.under("birch", harm=harmful(tmp_path / "harm", "poison(2)")):
        failed = card_of(town, study, town.submit(study))
    assert failed.error == "FloatingPointError"
    assert "is not finite" in failed.message
    assert "fp32" in failed.hint
    assert_resumes_as_undisturbed(town, study, tmp_path)


def test_a_hospital_with_a_changed_program_gets_nothing_from_another(town: Town, tmp_path: Path):
    """Its certificate is valid; the other site answers the coordinator alone, and says so."""
    study, report = accepted(town, 18), tmp_path / "attacks.json"
    with town.under(
        "birch", harm=harmful(tmp_path / "harm", f"attack(2, 'alder', {str(report)!r})")
    ):
        done = town.submit(study)
    assert done.code == 0, done.err
    assert_as_undisturbed(town, study, tmp_path)
    told = json.loads(report.read_text())
    assert told.pop("noise") == ["damaged", 0]
    assert len(told) == 6
    assert {name: answer for name, answer in told.items() if answer != ["refused", 0]} == {}
    log = RunFolder(town.run(study, "alder")).site("alder").ledger
    lines = [line.entry for line in read_ledger(log)]
    refused = [entry for entry in lines if entry.refused]
    assert len(refused) == 6
    assert all(not entry.tensors and not entry.bytes for entry in refused)
    sent = [entry for entry in lines if entry.asked == "train" and entry.tensors]
    assert [(entry.who, entry.round) for entry in sent] == [(SERVER_NAME, 1), (SERVER_NAME, 2)]
    assert log.stat().st_mode & 0o777 == 0o600


def test_the_process_of_a_job_that_never_begins_ends_by_itself():
    """NVFlare's own would call a site's process for ever that was killed at that moment."""
    done = subprocess.run([sys.executable, "-c", NEVER_BEGUN], check=False, timeout=LONG)
    assert done.returncode == 1
