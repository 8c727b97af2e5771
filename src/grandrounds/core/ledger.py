"""A ledger is a list of messages whose every line bears the SHA-256 of the line before.

It holds names, shapes, counts and digests, never data, and is read here without torch.
"""

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any, TypeAlias, cast

from grandrounds.core.errors import BadFolder, LedgerBroken
from grandrounds.core.files import whole_lines
from grandrounds.core.serialization import from_plain

SESSION, LISTING, OPEN, DELIVER = "session", "listing", "open", "deliver"
COORDINATOR = "coordinator"  # where it bears no other name
NOTES = (SESSION, LISTING)  # kinds of lines that tell of no message
_END = re.compile(rb', "sum": "([0-9a-f]{64})"(?:, "signature": "([A-Za-z0-9+/]+={0,2})")?\}')
VerifySignature: TypeAlias = Callable[[str, str, bytes, float], str]
"""Of a certificate (PEM), a signature (base64), what was signed and when: the signer's name."""


@dataclass(frozen=True)
class LedgerHead:
    """Where a ledger stands after the line of a message: what travels with that message.

    `message` is the digest of the message that the line tells of, `sum` the line's own, which the
    party signed where it has a key (base64).
    """

    number: int
    sum: str
    message: str
    signature: str = ""


@dataclass(frozen=True)
class LedgerEntry:
    """What one line tells.

    `who` is the other party: at a site who asked, by a verified name; at the coordinator the site
    that answered. `asked` is the kind of request, with what of it matters in `what`. `tensors`,
    `bytes` and `digest` (SHA-256) are of what left, tensors or the JSON of statistics; `listing`
    names the line that lists the tensors' names with their types and shapes (`named`). `message`
    is the digest of the whole answer: `core.messages.message_digest`. `scores` counts test cases,
    `metrics` names the means beside them. `to` says where the tensors went, if not to who asked,
    `guards` what protected them, and `epsilon` what the site had spent by then. `refused` and
    `failed` say why nothing left. `head` is where the sender's own ledger stood; `certificate`
    (PEM) verifies the signatures of the lines that follow. `study` is a SHA-256.
    """

    who: str
    asked: str
    round: int = 0
    what: Mapping[str, str] = field(default_factory=dict[str, str])
    tensors: int = 0
    bytes: int = 0
    digest: str = ""
    scores: int = 0
    to: tuple[str, ...] = ()
    refused: str = ""
    failed: str = ""
    listing: str = ""
    named: Mapping[str, str] = field(default_factory=dict[str, str])
    message: str = ""
    metrics: tuple[str, ...] = ()
    guards: tuple[str, ...] = ()
    epsilon: float | None = None
    study: str = ""
    certificate: str = ""
    head: LedgerHead | None = None

    @property
    def left(self) -> bool:
        """Tell whether a message left a site; in the coordinator's ledger, whether one arrived."""
        return self.asked not in (*NOTES, DELIVER) and not (self.refused or self.failed)


@dataclass(frozen=True)
class LedgerLine:
    """A line as it stands in a file; `hash` is the SHA-256 of all of it, for the line after."""

    number: int
    time: float
    entry: LedgerEntry
    before: str = ""
    sum: str = ""
    signature: str = ""
    hash: str = ""


SITES_HERE = "here"  # what a coordinator's ledger says of sites whose ledgers lie beside it
FIRST = "0" * 64  # what the first line of a ledger has in place of the hash of a line before


def line_content(number: int, moment: float, before: str, entry: LedgerEntry) -> bytes:
    """Return a line as JSON, without its end; what is empty in an entry is left out."""
    fields = asdict(entry).items()
    told = {
        n: value
        for n, value in fields
        if n in _ALWAYS or isinstance(value, float) or value not in _EMPTY
    }
    record = {"number": number, "time": moment, "before": before, **told}
    return json.dumps(record, allow_nan=False).encode()[:-1]


_ALWAYS = ("who", "asked")
_EMPTY: tuple[object, ...] = ("", 0, None, (), {})


def signed_statement(sum_of_line: str) -> bytes:
    """Return what a party signs of a line: with it, of all lines before."""
    return b"grandrounds ledger " + sum_of_line.encode()


def end_of_line(sum_of_line: str, signature: str) -> bytes:
    """Return the end of a line: its sum, and its signature if it has one."""
    signed = f', "signature": "{signature}"' if signature else ""
    return f', "sum": "{sum_of_line}"{signed}}}'.encode()


def read_ledger(path: Path) -> Iterator[LedgerLine]:
    """Yield each line, oldest first; an unfinished last line is left out.

    Lines of an `audit.jsonl` of an older version, which had no chain, are read too. What the lines
    say is believed here: `checked_lines` does not. Raises `BadFolder`.
    """
    for number, line in enumerate(_raw_lines(path)[0], start=1):
        try:
            yield _parsed(line, number)
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            raise BadFolder(f"{path}: line {number} is damaged") from None


def _raw_lines(path: Path) -> tuple[list[bytes], int]:
    """Return the whole lines of a file, and the bytes of one that is unfinished."""
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise BadFolder(f"{path}: cannot be read ({error.strerror})") from None
    whole = whole_lines(raw)
    return whole.split(b"\n")[:-1], len(raw) - len(whole)


def _parsed(line: bytes, number: int) -> LedgerLine:
    record = cast(dict[str, Any], json.loads(line))
    moment = float(record.pop("time"))
    chain = {name: str(record.pop(name, "")) for name in ("before", "sum", "signature")}
    count = int(record.pop("number", number))
    entry = from_plain(LedgerEntry, record)
    return LedgerLine(count, moment, entry, **chain, hash=sha256(line).hexdigest())


def checked_lines(path: Path, verify: VerifySignature) -> tuple[LedgerLine, ...]:
    """Return all lines of a ledger whose chain and signatures hold.

    That lines are missing at the end, or that a party wrote its whole ledger anew, no ledger tells
    by itself: `report.analysis.ledgers` holds several against each other. Raises `LedgerBroken`,
    with the first line that is not what was written, and `BadFolder` without a file.
    """
    raw, torn = _raw_lines(path)
    if not raw and not torn:
        raise LedgerBroken(f"{path}: is empty; a ledger has a line from its first session on")
    lines, session, before = list[LedgerLine](), LedgerEntry("", SESSION), FIRST
    for number, line in enumerate(raw, start=1):
        found = _checked(line, number, before, path)
        session = found.entry if found.entry.asked == SESSION else session
        _check_signature(found, session, verify, path)
        lines.append(found)
        before = found.hash
    if torn:
        raise LedgerBroken(
            f"{path}: line {len(raw) + 1} is unfinished ({torn} bytes): a process was stopped "
            "while it wrote it, or it was cut; what it tells of has not left, and the next start "
            "goes on from the line before"
        )
    return tuple(lines)


def _checked(line: bytes, number: int, before: str, path: Path) -> LedgerLine:
    """Return a line that follows the one before. Raises `LedgerBroken`."""
    start = line.rfind(b', "sum": ')
    end = _END.fullmatch(line, max(start, 0))
    if start < 0 or end is None or sha256(line[:start]).hexdigest().encode() != end[1]:
        raise LedgerBroken(f"{path}: line {number} is not what was written: its sum differs")
    try:
        found = _parsed(line, number)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise LedgerBroken(f"{path}: line {number} is not what a ledger writes") from None
    if found.number != number:
        raise LedgerBroken(
            f"{path}: line {number} bears the number {found.number}: a line before it was "
            "removed, moved or repeated"
        )
    if found.before != before:
        raise LedgerBroken(
            f"{path}: line {number} does not follow the line before it, which was changed or "
            "exchanged"
        )
    return found


def _check_signature(
    line: LedgerLine, session: LedgerEntry, verify: VerifySignature, path: Path
) -> None:
    """Check a line's signature by the certificate of its session. Raises `LedgerBroken`."""
    if not line.signature:
        if session.certificate and line.entry.message and line.entry.asked not in TURN_STEPS:
            raise LedgerBroken(f"{path}: line {line.number} has lost its signature")
        return
    try:
        name = verify(session.certificate, line.signature, signed_statement(line.sum), line.time)
    except ValueError as error:
        raise LedgerBroken(f"{path}: line {line.number}: {error}") from None
    if name != session.who:
        raise LedgerBroken(
            f"{path}: line {line.number} is signed by '{name}', and the ledger is of "
            f"'{session.who}'"
        )


TURN_STEPS = ("forward", "tail", "backward")  # of a turn: they are signed by the next line that is


def listings(lines: Sequence[LedgerLine]) -> dict[str, Mapping[str, str]]:
    """Map the digest of each listing in a ledger to its tensors' names, types and shapes."""
    return {each.entry.listing: each.entry.named for each in lines if each.entry.asked == LISTING}
