"""What a party writes down of each message, and that nothing leaves before it is written."""

import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
from torch import ones

from grandrounds.core.errors import BadFolder, DiskFailed, LedgerBroken
from grandrounds.core.ledger import (
    LISTING,
    NOTES,
    SESSION,
    LedgerEntry,
    LedgerHead,
    checked_lines,
    listings,
    read_ledger,
)
from grandrounds.core.messages import (
    Backward,
    CaseScore,
    Evaluate,
    Forward,
    Reply,
    Train,
    message_digest,
)
from grandrounds.core.weights import digest
from grandrounds.site.ledger import REFUSALS, Ledger, delivered_entry, ledger_entry, received_entry

SENT = {"w": ones(2)}
ASKED = Evaluate(round=2, since=2, split="test", cases=True)
SCORE = CaseScore(site="alder", patient="p001", case="1", task="t", values={"psnr": 1.0})
REPLY = Reply(site="alder", round=2, weights=SENT, metrics={"loss": 0.5})


def unsigned(certificate: str, signature: str, statement: bytes, moment: float) -> str:
    raise ValueError("nobody signs here")


def entries(path: Path) -> list[LedgerEntry]:
    """Return what a ledger tells of messages."""
    return [line.entry for line in read_ledger(path) if line.entry.asked not in NOTES]


def test_a_line_says_who_asked_for_what_and_what_left():
    line = ledger_entry("server", Train(round=2, since=1), left=REPLY, to=("birch",))
    assert line == LedgerEntry(
        "server",
        "train",
        2,
        {"since": "1"},
        1,
        8,
        digest(SENT),
        to=("birch",),
        named={"w": "float32 [2]"},
        metrics=("loss",),
        message=message_digest(REPLY, digest(SENT)),
    )


def test_a_line_counts_scores_and_holds_none():
    reply = Reply(site="alder", round=2, scores=(SCORE, replace(SCORE, case="2")))
    line = ledger_entry("server", ASKED, left=reply)
    assert (line.scores, line.tensors, line.digest, line.to) == (2, 0, "", ())
    assert line.what == {"split": "test", "cases": "True", "since": "2"}
    assert "p001" not in str(line)
    assert "1.0" not in str(line)


def test_a_line_names_the_guards_and_the_epsilon_of_what_left(tmp_path: Path):
    ledger = Ledger(tmp_path / "ledger.jsonl", guards=("clip",))
    for epsilon in (0.0, 1.5, None):
        ledger(
            ledger_entry("server", Train(round=2, since=1), left=replace(REPLY, epsilon=epsilon))
        )
    ledger(ledger_entry("server", ASKED, left=Reply(site="alder", round=2)))
    told = [(entry.guards, entry.epsilon) for entry in entries(ledger.path)]
    assert told == [(("clip",), 0.0), (("clip",), 1.5), (("clip",), None), ((), None)]


def test_the_coordinator_s_line_tells_of_the_same_message_as_the_site_s():
    asked, receipt = Train(round=2, since=1), REPLY.receipt(num_peers=1)
    to_server = ledger_entry("server", asked, left=REPLY)
    assert received_entry("alder", asked, REPLY).message == to_server.message
    to_peer = ledger_entry("server", asked, left=REPLY, to=("birch",), receipt=receipt)
    assert received_entry("alder", asked, receipt).message == to_peer.message
    assert delivered_entry("alder", REPLY).digest == to_peer.digest


def test_the_digest_of_a_message_is_of_all_that_is_in_it_but_where_the_ledger_stands():
    one = message_digest(REPLY, digest(SENT))
    assert one == message_digest(replace(REPLY, ledger=LedgerHead(1, "", one)), digest(SENT))
    assert one == message_digest(replace(REPLY, seconds=0), digest(SENT))  # as JSON has it
    changed = (
        message_digest(replace(REPLY, metrics={"loss": 0.25}), digest(SENT)),
        message_digest(replace(REPLY, scores=(SCORE,)), digest(SENT)),
        message_digest(REPLY, ""),
    )
    assert len({one, *changed}) == 4


def test_names_and_shapes_are_written_once_and_every_line_says_where(tmp_path: Path):
    ledger = Ledger(tmp_path / "ledger.jsonl")
    for round in (1, 2):
        ledger(ledger_entry("server", Train(round=round, since=0), left=REPLY))
    lines = checked_lines(ledger.path, unsigned)
    assert [line.entry.asked for line in lines] == [SESSION, LISTING, "train", "train"]
    [(listing, named)] = listings(lines).items()
    assert named == {"w": "float32 [2]"}
    assert [line.entry.listing for line in lines[2:]] == [listing] * 2


def test_a_ledger_is_read_back_in_order_and_only_its_owner_may_read_it(tmp_path: Path):
    ledger = Ledger(tmp_path / "sites" / "ledger.jsonl", party="alder", study="7" * 64)
    told = [LedgerEntry("server", "train", round, to=("birch",)) for round in (1, 2)]
    heads = [ledger(entry) for entry in told]
    found = [line for line in read_ledger(ledger.path) if line.entry.asked not in NOTES]
    assert [replace(line.entry, study="") for line in found] == told
    assert [(head.number, head.sum) for head in heads if head] == [
        (line.number, line.sum) for line in found
    ]
    assert {line.entry.study for line in found} == {"7" * 64}
    assert ledger.path.stat().st_mode & 0o777 == 0o600
    assert ledger.path.parent.stat().st_mode & 0o777 == 0o700


def test_the_next_process_goes_on_in_the_chain_and_says_what_it_cut_off(tmp_path: Path):
    path = tmp_path / "ledger.jsonl"
    Ledger(path)(LedgerEntry("server", "train", 1))
    with path.open("a") as file:
        file.write('{"number": 3, "time": 1.0, "bef')
    with pytest.raises(LedgerBroken, match=r"line 3 is unfinished \(31 bytes\): a process was"):
        checked_lines(path, unsigned)
    assert [entry.round for entry in entries(path)] == [1]
    Ledger(path)(LedgerEntry("server", "train", 2))
    lines = checked_lines(path, unsigned)
    assert [line.entry.asked for line in lines] == [SESSION, "train", SESSION, "train"]
    assert lines[2].entry.what == {"cut": "31 bytes"}


def test_threads_and_two_writers_write_one_chain(tmp_path: Path):
    writers = [Ledger(tmp_path / "ledger.jsonl") for _ in range(2)]
    with ThreadPoolExecutor(4) as pool:
        told = [LedgerEntry("server", "train", round) for round in range(40)]
        list(pool.map(lambda n: writers[n % 2](told[n]), range(40)))
    lines = checked_lines(writers[0].path, unsigned)
    assert {line.entry.round for line in lines if line.entry.asked == "train"} == set(range(40))


def test_strangers_cannot_fill_the_disk(tmp_path: Path):
    ledger = Ledger(tmp_path / "ledger.jsonl")
    for _ in range(REFUSALS + 5):
        ledger(LedgerEntry("unknown", "ask", refused="a letter is of another session"))
    ledger(LedgerEntry("server", "train", 1))
    lines = entries(ledger.path)
    assert len(lines) == REFUSALS + 1
    assert lines[-1].who == "server"


def test_a_peer_s_delivery_is_written_down_once_for_each_round(tmp_path: Path):
    ledger = Ledger(tmp_path / "ledger.jsonl")
    for round in (1, 1, 2):
        ledger(delivered_entry("birch", replace(REPLY, round=round)))
    assert [entry.round for entry in entries(ledger.path)] == [1, 2]


class _Key:
    """Signs with the statement's own end, which is enough to see what is signed."""

    certificate = "alder"

    @staticmethod
    def sign(statement: bytes) -> bytes:
        return statement[-6:]


def test_with_a_key_messages_are_signed_and_the_steps_of_a_turn_by_the_next(tmp_path: Path):
    ledger = Ledger(tmp_path / "ledger.jsonl", party="alder", key=_Key())
    for asked in (
        Forward(round=1, since=0),
        Backward(round=1, step=0),
        Train(round=2, since=1),
        ASKED,
    ):
        ledger(ledger_entry("server", asked, left=REPLY))
    lines = list(read_ledger(ledger.path))
    assert [line.entry.asked for line in lines if line.signature] == ["train", "evaluate"]
    assert lines[0].entry.certificate == "alder"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_ledger_without_rights_is_a_failed_disk(tmp_path: Path):
    tmp_path.chmod(0o500)
    with pytest.raises(DiskFailed, match="the ledger cannot be written"):
        Ledger(tmp_path / "ledger.jsonl")(LedgerEntry("server", "train", 1))


def test_a_ledger_that_cannot_be_written_is_a_failed_disk(tmp_path: Path):
    (tmp_path / "ledger.jsonl").mkdir()
    with pytest.raises(DiskFailed, match="the ledger cannot be written"):
        Ledger(tmp_path / "ledger.jsonl")(LedgerEntry("server", "train", 1))


def test_a_ledger_that_is_removed_in_mid_run_is_not_begun_anew(tmp_path: Path):
    ledger = Ledger(tmp_path / "ledger.jsonl")
    ledger(LedgerEntry("server", "train", 1))
    ledger.path.unlink()
    with pytest.raises(DiskFailed, match="the ledger cannot be written"):
        ledger(LedgerEntry("server", "train", 2))


@pytest.mark.parametrize("line", ["no json", "[]", "{}", '{"time": 1.0}', '{"time": "x"}'])
def test_a_damaged_line_is_named(line: str, tmp_path: Path):
    ledger = Ledger(tmp_path / "ledger.jsonl")
    ledger(LedgerEntry("server", "train", 1))
    with ledger.path.open("a") as file:
        file.write(line + "\n")
    with pytest.raises(BadFolder, match=r"line 3 is damaged"):
        list(read_ledger(ledger.path))


def test_the_log_of_an_older_version_is_read_too(tmp_path: Path):
    path = tmp_path / "audit.jsonl"
    path.write_text(
        '{"time": 5.0, "who": "server", "asked": "train", "round": 2, "what": {"since": "1"}, '
        '"tensors": 1, "bytes": 8, "digest": "ab", "scores": 0, "to": ["birch"], "refused": "", '
        '"failed": ""}\n'
    )
    [line] = read_ledger(path)
    assert (line.time, line.entry.who, line.entry.to) == (5.0, "server", ("birch",))
