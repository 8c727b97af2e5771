"""Any change of any line of a run's ledgers is noticed: alone, or beside the others."""

import json
import shutil
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import ones

from grandrounds.core.errors import BadFolder, LedgerBroken
from grandrounds.core.events import SiteTested, SiteTrained
from grandrounds.core.journal import Journal
from grandrounds.core.ledger import COORDINATOR, SITES_HERE, LedgerEntry, read_ledger
from grandrounds.core.messages import Evaluate, Reply, Train
from grandrounds.core.run_folder import RunFolder
from grandrounds.engines.envelope import SealingKey
from grandrounds.report.analysis.ledgers import LedgersChecked, check_file, check_ledgers
from grandrounds.site.ledger import Ledger, delivered_entry, ledger_entry, received_entry
from grandrounds.study.identity import load_key, sign, signer_then
from tests.helpers.certificates import Authority, new_key

SITES = ("alder", "birch")


class Signed(NamedTuple):
    """A run whose parties sign, and the certificate of their authority."""

    folder: Path
    root: Path

    def check(self, folder: Path | None = None, *others: Path) -> LedgersChecked:
        verify = partial(signer_then, root=self.root)
        return check_ledgers(folder or self.folder, verify, others)


def key_of(authority: Authority, folder: Path, name: str) -> SealingKey:
    key, certificate = authority.issue(name, folder / name)
    signs = partial(sign, key=load_key(key))
    return SealingKey(certificate.read_text(), signs, lambda *_: name)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Signed:
    """Two rounds of two sites, the last line that of a test, as a run writes them."""
    place = tmp_path_factory.mktemp("signed")
    authority = Authority("authority", new_key())
    return Signed(written(place / "run", authority), authority.root(place / "rootCA.pem"))


def written(folder: Path, authority: Authority | None) -> Path:
    files = RunFolder(folder)
    keys = folder.with_name("keys")
    keys.mkdir(exist_ok=True)

    def ledger(path: Path, party: str) -> Ledger:
        key = key_of(authority, keys, party) if authority else None
        about = {} if authority else {"sites": SITES_HERE}
        return Ledger(path, party=party, key=key, about=about)

    central = ledger(files.ledger, COORDINATOR)
    journal = Journal(files.journal)
    own = {name: ledger(files.site(name).ledger, name) for name in SITES}
    for round in (1, 2):
        for name in SITES:
            train = Train(round=round, since=round - 1)
            reply = Reply(site=name, round=round, weights={"w": ones(3) * round})
            send(own[name], central, train, reply)
            journal.append(SiteTrained(round, name, 1.0, 5, 5, 12, 12))
    for name in SITES:
        own[name](LedgerEntry("unknown", "ask", refused="it is not signed"))
        test = Evaluate(round=2, since=2, split="test")
        send(own[name], central, test, Reply(site=name, round=2, metrics={"psnr": 1.0}))
        journal.append(SiteTested(2, name, 1.0, 5))
    return folder


def send(own: Ledger, central: Ledger, asked: Train | Evaluate, reply: Reply) -> None:
    head = own(ledger_entry(COORDINATOR, asked, left=reply))
    central(received_entry(reply.site, asked, replace(reply, ledger=head)))


def test_a_run_whose_ledgers_are_whole_says_how_many_messages_agree(run: Signed):
    found = run.check()
    assert found.matched == {"alder": 3, "birch": 3}
    assert found.unreceived == {"alder": 0, "birch": 0}
    assert [(ledger.party, ledger.signed) for ledger in found.ledgers] == [
        (COORDINATOR, 6),
        ("alder", 3),
        ("birch", 3),
    ]


FILES = ("ledger.jsonl", "sites/alder/ledger.jsonl", "sites/birch/ledger.jsonl")


def mutated(lines: list[bytes], how: str, line: int, byte: int, bit: int) -> list[bytes]:
    """Return lines with one of them changed, removed, repeated or moved, or all after it cut."""
    number = line % len(lines)
    match how:
        case "bit":
            old = bytearray(lines[number])
            old[byte % len(old)] ^= 1 << bit
            return [*lines[:number], bytes(old), *lines[number + 1 :]]
        case "byte removed":
            place = byte % len(lines[number])
            cut = lines[number][:place] + lines[number][place + 1 :]
            return [*lines[:number], cut, *lines[number + 1 :]]
        case "line removed":
            return lines[:number] + lines[number + 1 :]
        case "line repeated":
            return [*lines[: number + 1], *lines[number:]]
        case "line moved":
            other = (number + 1) % len(lines)
            moved = list(lines)
            moved[number], moved[other] = lines[other], lines[number]
            return moved
        case _:
            return lines[:number]


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    file=st.sampled_from(FILES),
    how=st.sampled_from(
        ["bit", "byte removed", "line removed", "line repeated", "line moved", "cut"]
    ),
    line=st.integers(0, 30),
    byte=st.integers(0, 4000),
    bit=st.integers(0, 7),
)
def test_any_mutation_of_any_line_is_noticed(
    run: Signed, file: str, how: str, line: int, byte: int, bit: int
):
    path = run.folder / file
    before = path.read_bytes()
    try:
        path.write_bytes(b"".join(mutated(before.splitlines(True), how, line, byte, bit)))
        with pytest.raises(LedgerBroken, match=r"ledger\.jsonl: "):
            run.check()
    finally:
        path.write_bytes(before)


def rewritten(path: Path, keep: int) -> None:
    """Write a ledger anew, chain and sums and all, without what came after some lines."""
    entries = [line.entry for line in read_ledger(path)][1:keep]
    party = next(read_ledger(path)).entry.who
    path.unlink()
    ledger = Ledger(path, party=party, about={"sites": SITES_HERE})
    for entry in entries:
        ledger(entry)


@pytest.mark.parametrize("keep", [3, 5, 99])
def test_a_site_s_ledger_that_is_written_anew_is_not_what_came_with_the_messages(
    keep: int, tmp_path: Path
):
    folder = written(tmp_path / "run", None)
    path = RunFolder(folder).site("birch").ledger
    rewritten(path, keep)
    check_file(path, signer_then)  # by itself it is whole
    with pytest.raises(LedgerBroken, match="is not the line that came with the message"):
        check_ledgers(folder, signer_then)


def test_a_coordinator_s_ledger_without_its_end_lacks_what_the_journal_tells(tmp_path: Path):
    folder = written(tmp_path / "run", None)
    rewritten(RunFolder(folder).ledger, keep=4)
    with pytest.raises(
        LedgerBroken, match=r"ends at line 5 and lacks a message of 'alder' in round 2"
    ):
        check_ledgers(folder, signer_then)


def test_a_ledger_that_is_gone_or_another_site_s_is_noticed(tmp_path: Path):
    folder = written(tmp_path / "run", None)
    files = RunFolder(folder)
    shutil.copy(files.site("alder").ledger, files.site("birch").ledger)
    with pytest.raises(LedgerBroken, match="is the ledger of another party than 'birch'"):
        check_ledgers(folder, signer_then)
    files.site("birch").ledger.unlink()
    with pytest.raises(LedgerBroken, match="is missing, and the coordinator received messages"):
        check_ledgers(folder, signer_then)
    with pytest.raises(BadFolder, match="no ledger here"):
        check_ledgers(tmp_path, signer_then)


def test_a_hospital_s_own_ledger_is_held_against_the_coordinator_s(run: Signed, tmp_path: Path):
    central = tmp_path / "run"
    central.mkdir()
    shutil.copy(run.folder / "ledger.jsonl", central)
    assert run.check(central).absent == SITES
    handed_over = tmp_path / "birch.jsonl"
    shutil.copy(run.folder / FILES[2], handed_over)
    found = run.check(central, handed_over)
    assert (found.absent, found.matched) == (("alder",), {"birch": 3})
    handed_over.write_bytes(b"".join(handed_over.read_bytes().splitlines(True)[:-1]))
    with pytest.raises(LedgerBroken, match=r"birch\.jsonl: ends at line 5; the message of line 6"):
        run.check(central, handed_over)


def test_a_signature_counts_only_by_its_party_and_authority(run: Signed, tmp_path: Path):
    foreign = Authority("authority", new_key())
    root = foreign.root(tmp_path / "rootCA.pem")
    with pytest.raises(LedgerBroken, match="the certificate is not of this federation"):
        check_ledgers(run.folder, partial(signer_then, root=root))
    path = tmp_path / "ledger.jsonl"
    key = key_of(foreign, tmp_path, "cedar")
    Ledger(path, party="birch", key=key)(
        ledger_entry("server", Train(round=1, since=0), left=Reply(site="birch", round=1))
    )
    with pytest.raises(LedgerBroken, match="signed by 'cedar', and the ledger is of 'birch'"):
        check_file(path, partial(signer_then, root=root))


def test_what_a_peer_received_is_held_against_what_its_sender_wrote(tmp_path: Path):
    folder = tmp_path / "run"
    files = RunFolder(folder)
    alder, birch = (Ledger(files.site(n).ledger, party=n) for n in SITES)
    update = Reply(site="alder", round=1, weights={"w": ones(2)})
    entry = ledger_entry(
        COORDINATOR, Train(round=1, since=0), left=update, to=("birch",), receipt=update.receipt(1)
    )
    sent = replace(update, ledger=alder(entry))
    birch(delivered_entry("alder", sent))
    assert not check_ledgers(folder, signer_then).compared
    birch(delivered_entry("alder", replace(sent, round=2, weights={"w": ones(2) * 2})))
    with pytest.raises(LedgerBroken, match="does not tell of the tensors that 'birch' received"):
        check_ledgers(folder, signer_then)


def test_no_line_holds_a_value_of_a_tensor_or_a_score(run: Signed):
    for file in FILES:
        for line in (run.folder / file).read_text().splitlines():
            record = json.loads(line)
            assert "weights" not in record
            assert "values" not in line
