"""A site writes down every request, answered or refused: who asked for what, and what left."""

import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from hashlib import sha256
from pathlib import Path
from threading import Lock
from typing import TypeAlias

from grandrounds.core.errors import BadFolder, DiskFailed
from grandrounds.core.files import append_line, make_private_folder, whole_lines
from grandrounds.core.messages import Reply, Request
from grandrounds.core.serialization import from_plain
from grandrounds.core.site_statistics import statistics_bytes
from grandrounds.core.weights import digest, num_bytes

REFUSALS = 1000  # refused letters that are written down, for each process
LONGEST_WORD = 200  # characters of a word in a line


@dataclass(frozen=True)
class AuditEntry:
    """One line of the log.

    `who` asked is a verified name; `asked` is the kind of request, with what of it matters in
    `what`. `tensors`, `bytes` and `digest` (SHA-256) are of what left, tensors or the JSON of
    statistics, and `to` says where it went.
    `refused` and `failed` say why nothing left.
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


Audit: TypeAlias = Callable[[AuditEntry], None]


def unaudited(entry: AuditEntry) -> None:
    """Write nothing down: for sites that are simulated."""


def audit_entry(
    who: str,
    request: Request,
    *,
    left: Reply | None = None,
    to: Sequence[str] = (),
    refused: str = "",
    failed: str = "",
) -> AuditEntry:
    """Return the line of a request, and of what left the site in answer to it."""
    named = ("split", "cases", "epochs", "steps", "step", "after", "tuned", "since", "leader")
    found = {name: str(getattr(request, name)) for name in named if getattr(request, name, None)}
    what = {name: value[:LONGEST_WORD] for name, value in found.items()}
    sent = left.weights if left else {}
    told = _statistics(left)
    return AuditEntry(
        who=who,
        asked=type(request).__name__.lower(),
        round=request.round,
        what=what,
        tensors=len(sent),
        bytes=num_bytes(sent) + len(told),
        digest=digest(sent) if sent else sha256(told).hexdigest() if told else "",
        scores=len(left.scores) if left else 0,
        to=tuple(to) if sent else (),
        refused=refused,
        failed=failed,
    )


def _statistics(left: Reply | None) -> bytes:
    return statistics_bytes(left.statistics) if left and left.statistics else b""


@dataclass
class AuditLog:
    """The log of one run at a site, a JSON object a line, readable by its owner alone.

    At most `REFUSALS` refused letters are written down, and each delivery of a peer once, so that
    nobody fills the disk.
    """

    path: Path
    _refusals: int = field(default=0, init=False)
    _deliveries: set[tuple[str, int]] = field(default_factory=set[tuple[str, int]], init=False)
    _lock: Lock = field(default_factory=Lock, init=False)

    def __call__(self, entry: AuditEntry) -> None:
        """Write one line, before what it tells of leaves. Raises `DiskFailed`."""
        with self._lock:
            if self._is_repeated(entry):
                return
            line = json.dumps({"time": time.time(), **asdict(entry)}).encode()
            try:
                make_private_folder(self.path.parent)
                self.path.touch(mode=0o600)
                self.path.chmod(0o600)
                append_line(self.path, line)
            except OSError as error:
                raise DiskFailed(f"{self.path}: the log cannot be written: {error}") from error

    def _is_repeated(self, entry: AuditEntry) -> bool:
        if entry.refused:
            self._refusals += 1
            return self._refusals > REFUSALS
        if entry.asked != "deliver":
            return False
        delivery = (entry.who, entry.round)
        known = delivery in self._deliveries
        self._deliveries.add(delivery)
        return known


def read_audit(path: Path) -> Iterator[tuple[float, AuditEntry]]:
    """Yield each line with its time, oldest first; an unfinished last line is left out.

    Raises `BadFolder` for a damaged line.
    """
    for number, line in enumerate(whole_lines(path.read_bytes()).split(b"\n")[:-1], start=1):
        try:
            record = json.loads(line)
            yield float(record.pop("time")), from_plain(AuditEntry, record)
        except (ValueError, KeyError, TypeError, AttributeError):
            raise BadFolder(f"{path}: line {number} is damaged") from None
