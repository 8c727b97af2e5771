"""What a site writes down of each request, and that nothing leaves before it is written."""

import os
from dataclasses import replace
from pathlib import Path

import pytest
from torch import ones

from grandrounds.core.errors import BadFolder, DiskFailed
from grandrounds.core.messages import CaseScore, Evaluate, Reply, Train
from grandrounds.core.weights import digest
from grandrounds.site.audit import REFUSALS, AuditEntry, AuditLog, audit_entry, read_audit

SENT = {"w": ones(2)}
ASKED = Evaluate(round=2, since=2, split="test", cases=True)
SCORE = CaseScore(site="alder", patient="p001", case="1", task="t", values={"psnr": 1.0})


def test_a_line_says_who_asked_for_what_and_what_left():
    reply = Reply(site="alder", round=2, weights=SENT)
    line = audit_entry("server", Train(round=2, since=1), left=reply, to=("birch",))
    assert line == AuditEntry(
        "server", "train", 2, {"since": "1"}, 1, 8, digest(SENT), 0, ("birch",)
    )


def test_a_line_counts_scores_and_holds_none():
    reply = Reply(site="alder", round=2, scores=(SCORE, replace(SCORE, case="2")))
    line = audit_entry("server", ASKED, left=reply)
    assert (line.scores, line.tensors, line.digest, line.to) == (2, 0, "", ())
    assert line.what == {"split": "test", "cases": "True", "since": "2"}
    assert "p001" not in str(line)


def test_the_log_is_read_back_in_order_and_only_its_owner_may_read_it(tmp_path: Path):
    log = AuditLog(tmp_path / "sites" / "audit.jsonl")
    entries = [AuditEntry("server", "train", round, to=("birch",)) for round in (1, 2)]
    for entry in entries:
        log(entry)
    found = list(read_audit(log.path))
    assert [entry for _, entry in found] == entries
    assert sorted(moment for moment, _ in found) == [moment for moment, _ in found]
    assert log.path.stat().st_mode & 0o777 == 0o600


def test_a_line_that_a_full_disk_left_unfinished_is_no_line(tmp_path: Path):
    log = AuditLog(tmp_path / "audit.jsonl")
    entries = [AuditEntry("server", "train", round) for round in (1, 2)]
    log(entries[0])
    with log.path.open("a") as file:
        file.write('{"time": 1.0, "who": "ser')
    assert [entry for _, entry in read_audit(log.path)] == entries[:1]
    log(entries[1])
    assert [entry for _, entry in read_audit(log.path)] == entries


def test_strangers_cannot_fill_the_disk(tmp_path: Path):
    log = AuditLog(tmp_path / "audit.jsonl")
    for _ in range(REFUSALS + 5):
        log(AuditEntry("unknown", "ask", refused="a letter is of another session"))
    log(AuditEntry("server", "train", 1))
    lines = [entry for _, entry in read_audit(log.path)]
    assert len(lines) == REFUSALS + 1
    assert lines[-1].who == "server"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_log_without_rights_is_a_failed_disk(tmp_path: Path):
    tmp_path.chmod(0o500)
    with pytest.raises(DiskFailed, match="the log cannot be written"):
        AuditLog(tmp_path / "audit.jsonl")(AuditEntry("server", "train", 1))


def test_a_log_that_cannot_be_written_is_a_failed_disk(tmp_path: Path):
    (tmp_path / "audit.jsonl").mkdir()
    with pytest.raises(DiskFailed, match="the log cannot be written"):
        AuditLog(tmp_path / "audit.jsonl")(AuditEntry("server", "train", 1))


@pytest.mark.parametrize("line", ["no json", "[]", "{}", '{"time": 1.0}', '{"time": "x"}'])
def test_a_damaged_line_is_named(line: str, tmp_path: Path):
    log = AuditLog(tmp_path / "audit.jsonl")
    log(AuditEntry("server", "train", 1))
    with log.path.open("a") as file:
        file.write(line + "\n")
    with pytest.raises(BadFolder, match=r"line 2 is damaged"):
        list(read_audit(log.path))
