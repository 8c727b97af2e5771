"""The ledgers of a run are held against each other: nobody can shorten one alone, or tell apart."""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from grandrounds.core.errors import BadFolder, LedgerBroken
from grandrounds.core.events import (
    Event,
    SiteMonitored,
    SiteTested,
    SiteTrained,
    SiteTuned,
    SiteValidated,
)
from grandrounds.core.journal import read_journal
from grandrounds.core.ledger import (
    DELIVER,
    NOTES,
    SESSION,
    SITES_HERE,
    LedgerHead,
    LedgerLine,
    VerifySignature,
    checked_lines,
)
from grandrounds.core.run_folder import RunFolder, SiteFolder


@dataclass(frozen=True)
class CheckedLedger:
    """A ledger whose chain and signatures hold, and whose it is."""

    path: Path
    party: str
    lines: tuple[LedgerLine, ...]

    @property
    def signed(self) -> int:
        """Return how many lines bear a signature."""
        return sum(bool(line.signature) for line in self.lines)

    @property
    def head(self) -> LedgerLine:
        """Return the last line; whoever writes down its sum can ask for it later."""
        return self.lines[-1]

    def line(self, number: int) -> LedgerLine | None:
        """Return a line by its number; None beyond the last."""
        return self.lines[number - 1] if 0 < number <= len(self.lines) else None


@dataclass(frozen=True)
class LedgersChecked:
    """What holding a run's ledgers against each other came to, where nothing is wrong.

    `matched` counts, by site, the messages that the coordinator's ledger tells of as the site's
    does; `unreceived` those that left a site, or were about to, and that the coordinator never
    recorded: a run that was stopped, or a reply for which nobody waited. `absent` are sites whose
    ledgers are not here. `compared` tells whether there was a ledger of the coordinator.
    """

    ledgers: tuple[CheckedLedger, ...]
    matched: Mapping[str, int]
    unreceived: Mapping[str, int]
    absent: tuple[str, ...]
    compared: bool


def check_file(path: Path, verify: VerifySignature) -> CheckedLedger:
    """Check one ledger alone. Raises `LedgerBroken`, and `BadFolder` without a file."""
    lines = checked_lines(path, verify)
    if lines[0].entry.asked != SESSION:
        raise LedgerBroken(f"{path}: line 1 does not begin a session, as the first of a ledger")
    return CheckedLedger(path, lines[0].entry.who, lines)


def ledger_files(folder: Path) -> tuple[Path | None, dict[str, Path]]:
    """Return the coordinator's ledger of a run, if there is one, and those of sites that are here.

    Raises `BadFolder` where a folder has none at all.
    """
    run = RunFolder(folder)
    found = {path.parent.name: path for path in sorted(run.sites.glob(f"*/{SiteFolder.ledger}"))}
    central = run.ledger if run.ledger.exists() else None
    if central is None and not found:
        raise BadFolder(
            f"{folder}: no ledger here; a run of this version writes ledger.jsonl, and one for "
            "each site in sites/NAME (a hospital's own stays at the hospital)"
        )
    return central, found


def check_ledgers(
    folder: Path, verify: VerifySignature, others: Iterable[Path] = ()
) -> LedgersChecked:
    """Check every ledger of a run, alone and against the others.

    `others` are files of ledgers that lie elsewhere, such as the one that a hospital hands over.
    Raises `LedgerBroken` with the file and the line, and `BadFolder` where there is none.
    """
    central, found = ledger_files(folder)
    coordinator = check_file(central, verify) if central else None
    sites = [check_file(path, verify) for path in (*found.values(), *others)]
    by_name = {site.party: site for site in sites}
    for name, path in found.items():
        if name not in by_name:
            raise LedgerBroken(f"{path}: is the ledger of another party than '{name}'")
    matched, unreceived = dict[str, int](), dict[str, int]()
    if coordinator:
        _check_told(RunFolder(folder).journal, coordinator)
        _check_presence(coordinator, by_name)
        for site in sites:
            matched[site.party], unreceived[site.party] = _against(coordinator, site)
    for site in sites:
        _check_deliveries(site, by_name)
    told = _senders(coordinator) if coordinator else ()
    ledgers = (*((coordinator,) if coordinator else ()), *sites)
    absent = tuple(name for name in told if name not in by_name)
    return LedgersChecked(ledgers, matched, unreceived, absent, coordinator is not None)


def _senders(coordinator: CheckedLedger) -> tuple[str, ...]:
    messages = (line.entry for line in coordinator.lines if line.entry.asked not in NOTES)
    return tuple(dict.fromkeys(entry.who for entry in messages))


def _check_presence(coordinator: CheckedLedger, sites: Mapping[str, CheckedLedger]) -> None:
    """Refuse a run of one machine that lacks a site's ledger."""
    if coordinator.lines[0].entry.what.get("sites") != SITES_HERE:
        return
    for name in _senders(coordinator):
        if name not in sites:
            path = SiteFolder(coordinator.path.parent / RunFolder.sites / name).ledger
            raise LedgerBroken(f"{path}: is missing, and the coordinator received messages of it")


def _against(coordinator: CheckedLedger, site: CheckedLedger) -> tuple[int, int]:
    """Hold a site's ledger against the coordinator's; count messages told by both, and by one."""
    known, last = set[int](), 0
    for line in coordinator.lines:
        if line.entry.who != site.party or line.entry.asked in NOTES or line.entry.head is None:
            continue
        head = line.entry.head
        if head.number <= last:
            raise LedgerBroken(
                f"{coordinator.path}: line {line.number} says that the ledger of '{site.party}' "
                f"went back from line {last} to line {head.number}"
            )
        _check_line(line, head, site)
        known.add(head.number)
        last = head.number
    sent = {line.number for line in site.lines if line.entry.message}
    return len(known), len(sent - known)


def _check_line(received: LedgerLine, head: LedgerHead, site: CheckedLedger) -> None:
    found = site.line(head.number)
    if found is None:
        raise LedgerBroken(
            f"{site.path}: ends at line {site.head.number}; the message of line {head.number} was "
            f"received (line {received.number} of the coordinator's ledger), so its end was cut"
        )
    if (found.sum, found.entry.message, found.signature) != (
        head.sum,
        head.message,
        head.signature,
    ) or received.entry.message != head.message:
        raise LedgerBroken(
            f"{site.path}: line {head.number} is not the line that came with the message (line "
            f"{received.number} of the coordinator's ledger): one of both was written anew"
        )


def _check_deliveries(site: CheckedLedger, others: Mapping[str, CheckedLedger]) -> None:
    """Hold what a site says that peers delivered against what those say that they sent."""
    for line in site.lines:
        entry = line.entry
        sender = others.get(entry.who) if entry.asked == DELIVER else None
        if sender is None or entry.head is None:
            continue
        sent = sender.line(entry.head.number)
        if sent is None or (sent.sum, sent.entry.digest) != (entry.head.sum, entry.digest):
            raise LedgerBroken(
                f"{sender.path}: line {entry.head.number} does not tell of the tensors that "
                f"'{site.party}' received (line {line.number} of its ledger)"
            )


_TOLD_AS: Mapping[type, tuple[str, ...]] = {
    SiteTrained: ("train", "backward"),
    SiteTuned: ("tune",),
    SiteValidated: ("evaluate",),
    SiteMonitored: ("evaluate",),
    SiteTested: ("evaluate",),
}


def _check_told(journal: Path, coordinator: CheckedLedger) -> None:
    """Refuse a coordinator's ledger that tells of less than the journal of its run.

    A reply stands in the ledger before the journal's line of it is written.
    """
    if not journal.exists():
        return
    events = Counter(_key(event) for _, event in read_journal(journal) if type(event) in _TOLD_AS)
    lines = Counter(
        (line.entry.round, line.entry.who, line.entry.asked) for line in coordinator.lines
    )
    for (round, site, kinds), count in events.items():
        if sum(lines[round, site, kind] for kind in kinds) < count:
            raise LedgerBroken(
                f"{coordinator.path}: ends at line {coordinator.head.number} and lacks a message "
                f"of '{site}' in round {round} ({kinds[0]}), of which the journal tells"
            )


def _key(event: Event) -> tuple[int, str, tuple[str, ...]]:
    told = cast(SiteTrained, event)  # all of `_TOLD_AS` have a round and a site
    return told.round, told.site, _TOLD_AS[type(event)]
