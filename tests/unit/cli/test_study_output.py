"""A site's log and a federation's status on a terminal of 80 columns, and in a pipe."""

import pytest

from grandrounds.cli.federation_output import print_jobs
from grandrounds.cli.study_output import print_requests
from grandrounds.core.ledger import LedgerEntry, LedgerLine

DIGEST, JOB = "0123456789abcdef" * 4, "f8bf27a1-768b-41b1-9e43-13815a268c28"
ENTRIES = [
    LedgerEntry("localhost", "train", 2, {"since": "1"}, 98, 1_234_567_890, DIGEST, 0, ("birch",)),
    LedgerEntry("localhost", "evaluate", 3, {"split": "test", "cases": "True"}, scores=144),
    LedgerEntry("localhost", "describe"),
    LedgerEntry("unknown", "ask", refused="a letter of an unknown sender: [bold]it is not signed"),
    LedgerEntry("localhost", "train", 3, failed="FloatingPointError"),
]


def test_an_entry_of_a_site_s_log_is_whole_and_no_line_is_longer_than_a_terminal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setenv("COLUMNS", "80")
    print_requests([LedgerLine(1, 1796025018.6, entry) for entry in ENTRIES])
    said = capsys.readouterr().out
    assert said == (
        "2026-11-30 07:50:18  localhost: train since=1, round 2\n"
        "    98 tensors left, 1,234,567,890 bytes, to birch\n"
        f"    SHA-256 {DIGEST}\n"
        "2026-11-30 07:50:18  localhost: evaluate split=test cases=True, round 3\n"
        "    144 scores left\n"
        "2026-11-30 07:50:18  localhost: describe, round 0\n"
        "    nothing left but counts and means\n"
        "2026-11-30 07:50:18  unknown: ask, round 0\n"
        "    refused: a letter of an unknown sender: [bold]it is not signed\n"
        "2026-11-30 07:50:18  localhost: train, round 3\n"
        "    failed: FloatingPointError\n"
    )
    assert max(map(len, said.splitlines())) <= 80


def test_a_long_reason_is_not_cut_nor_broken_in_a_pipe(capsys: pytest.CaptureFixture[str]):
    reason = "it is refused " * 20
    print_requests([LedgerLine(1, 0.0, LedgerEntry("localhost", "train", 1, refused=reason))])
    assert f"    refused: {reason}\n" in capsys.readouterr().out


def test_an_empty_log_says_so(capsys: pytest.CaptureFixture[str]):
    print_requests([])
    assert capsys.readouterr().out == "nothing was asked of this site yet\n"


def test_a_job_s_id_status_and_round_stand_in_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setenv("COLUMNS", "80")
    when = "2026-11-30T07:50:17.703736+00:00"
    jobs = [(JOB, "tiny", "RUNNING", "2 of 3", when), (JOB, "tiny", "FINISHED:COMPLETED", "", when)]
    print_jobs(("alder", "birch"), jobs)
    said = capsys.readouterr().out
    assert said == (
        "there: alder, birch\n"
        f"{JOB}  RUNNING, round 2 of 3\n    tiny, submitted {when}\n"
        f"{JOB}  FINISHED:COMPLETED\n    tiny, submitted {when}\n"
    )
    assert max(map(len, said.splitlines())) <= 80
