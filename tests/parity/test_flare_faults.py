"""What befalls a provisioned federation: after `resume` the digests are those of an undisturbed
run; before it, the failure card says what happened.
"""

import re
import resource
import socket
import ssl
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from grandrounds.acceptance import FOLDER
from grandrounds.events import Failed, RunResumed
from grandrounds.run import run
from grandrounds.study import Study
from grandrounds.study_file import fingerprint
from tests.federation import digests, rows
from tests.flare import (
    LONG,
    SERVER,
    Town,
    differing,
    harmful,
    needs_flare,
    provisioned,
    small,
    wait_until,
    written,
)
from tests.journeys.command import Done, started

pytestmark = [pytest.mark.provisioned, pytest.mark.engine, pytest.mark.slow, needs_flare]

NEVER_BEGUN = """
import time
from grandrounds.engines.lines import Patience
from grandrounds.flare import executor
executor.Patience = lambda: Patience(start=0.1)
executor.SiteExecutor("run")
time.sleep(600)
"""
SLOW = 26.0  # seconds; more than the silence of 20 after which a site is dead


@pytest.fixture(scope="module")
def town(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Town]:
    """A server and two sites that run."""
    with provisioned(small(), tmp_path_factory.mktemp("town")) as town:
        town.start(SERVER, "alder", "birch")
        yield town


def accepted(town: Town, seed: int) -> Study:
    """A study of its own for one test, accepted by all."""
    study = small(f"seed={seed}")
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
        wait_until(marker.exists)
        town.kill(*killed)
        out, err = job.communicate(timeout=LONG)
        return Done(job.returncode, out, err)


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


def test_a_server_killed_in_a_round_takes_nothing_with_it(town: Town, tmp_path: Path):
    study, marker = accepted(town, 12), tmp_path / "held"
    with town.under("birch", harm=harmful(tmp_path / "harm", f"hold(2, {str(marker)!r})")):
        done = submitted_and_held(town, study, marker, SERVER)
    assert done.code == 1
    assert done.err.count("\n") == 1
    town.kill("alder")
    assert len(digests_told(town, study)) == 1
    town.start(SERVER, "alder")
    assert_resumes_as_undisturbed(town, study, tmp_path)


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
        "site 'alder' has not accepted this study; look at it and sign it there: "
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
    assert failed.message.endswith("is not finite")
    assert "fp32" in failed.hint
    assert_resumes_as_undisturbed(town, study, tmp_path)


def test_the_process_of_a_job_that_never_begins_ends_by_itself():
    """NVFlare's own would call a site's process for ever that was killed at that moment."""
    done = subprocess.run([sys.executable, "-c", NEVER_BEGUN], check=False, timeout=LONG)
    assert done.returncode == 1
