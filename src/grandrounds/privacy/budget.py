"""A dataset has one privacy budget for all runs, which the site that holds the data keeps.

It lies beside the data, and neither in a run's folder nor under a study's name: a copy of a study
with another name, seed or image size meets the same budget. Every release is in it, on the disk,
before any of its numbers is computed.
"""

import fcntl
import json
import os
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from grandrounds.core.errors import BadSite, RunFailed
from grandrounds.core.files import append_line, make_private_folder, whole_lines
from grandrounds.core.sentence import phrase
from grandrounds.core.serialization import from_plain
from grandrounds.privacy.accounting import GaussianSteps, Spending, spending

if TYPE_CHECKING:
    from io import TextIOWrapper

_CHARGES, _LOCK = "charges.jsonl", "lock"
DELTA = 1e-5


class BudgetUsedUp(RunFailed):
    """A site's privacy budget does not allow another release of its data."""


@dataclass(frozen=True)
class PrivacyLimit:
    """How much all runs together may reveal of a site's data: the site's own, in its site file.

    `epsilon` and `delta` hold for everything that was ever charged to the data. `folder` is where
    the budget is kept; by default beside the data, named like it with ".privacy" at the end.
    """

    epsilon: float
    delta: float = DELTA
    folder: Path | None = None


@dataclass(frozen=True)
class Charge:
    """One release: its name, what it adds to what was revealed, and of which study and data."""

    release: str
    study: str  # SHA-256
    round: int
    data: str  # digest of the prepared data
    noise: float
    sampling: float
    steps: int
    time: str = ""

    @property
    def cost(self) -> GaussianSteps:
        """Return what the release adds."""
        return GaussianSteps(self.noise, self.sampling, self.steps)


@dataclass(frozen=True)
class PrivacyBudget:
    """The charges of one dataset in a folder of its own, and the limit; None has no limit."""

    site: str
    folder: Path
    limit: PrivacyLimit | None = None

    @property
    def delta(self) -> float:
        """Return the delta at which epsilon is told."""
        return self.limit.delta if self.limit else DELTA

    def charges(self) -> tuple[Charge, ...]:
        """Read all charges. Raises `BadSite` where one is damaged: nothing may be forgotten."""
        path = self.folder / _CHARGES
        if not path.exists():
            return ()
        lines = whole_lines(path.read_bytes()).splitlines()
        return tuple(_read(path, number, line) for number, line in enumerate(lines, 1))

    def spent(self) -> Spending:
        """Return what was revealed so far."""
        return spending([each.cost for each in self.charges()], self.delta)

    def after(self, planned: Sequence[GaussianSteps], study: str = "") -> Spending:
        """Return what will have been revealed once a study's plan is done.

        What is charged to the same study already is part of its plan, so far as the plan goes.
        """
        others = [each.cost for each in self.charges() if each.study != study]
        own = [each.cost for each in self.charges() if each.study == study]
        as_planned = spending([*others, *planned], self.delta)
        as_charged = spending([*others, *own], self.delta)
        return max(as_planned, as_charged, key=lambda found: found.epsilon)

    def check(self, planned: Sequence[GaussianSteps], study: str) -> None:
        """Refuse a study whose whole run would exceed the limit. Raises `BadSite`."""
        if self.limit is None:
            return
        found = self.after(planned, study)
        if found.epsilon > self.limit.epsilon:
            raise BadSite(
                f"site '{self.site}': with this run all runs on its data would reach epsilon "
                f"{found.epsilon:.3g} at delta {self.delta:g}; its site file allows "
                f"{self.limit.epsilon:g}, of which {self.spent().epsilon:.3g} is used. Take more "
                "noise or fewer rounds.",
                safe=phrase(
                    "this run would exceed the privacy budget of its data; take more noise or "
                    "fewer rounds"
                ),
            )

    def allows(self, *costs: GaussianSteps) -> bool:
        """Tell whether the limit allows these releases, too."""
        return self._allows(self.charges(), *costs)

    def _allows(self, charges: Sequence[Charge], *costs: GaussianSteps) -> bool:
        if self.limit is None:
            return True
        found = spending([*(each.cost for each in charges), *costs], self.delta)
        return found.epsilon <= self.limit.epsilon

    def charge(self, charge: Charge) -> None:
        """Put a release into the budget, on the disk; one that is in it already counts once.

        Raises `BudgetUsedUp` where the limit does not allow it, and `BadSite`.
        """
        with self._locked():
            charges = self.charges()
            if any(each.release == charge.release for each in charges):
                return
            if not self._allows(charges, charge.cost):
                raise BudgetUsedUp(
                    f"site '{self.site}': the privacy budget of its data is used up: another "
                    "release would exceed the epsilon in its site file",
                    safe=phrase("the privacy budget of its data is used up"),
                )
            now = datetime.now(UTC).isoformat(timespec="seconds")
            line = json.dumps({**asdict(charge), "time": charge.time or now})
            self._append(line.encode())

    def _append(self, line: bytes) -> None:
        path = self.folder / _CHARGES
        new = not path.exists()
        path.touch(0o600)
        append_line(path, line, flush=True)
        if new:
            _flush_names(self.folder)

    @contextmanager
    def _locked(self) -> Generator[None, None, None]:
        make_private_folder(self.folder)
        lock: TextIOWrapper
        with (self.folder / _LOCK).open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield


def _read(path: Path, number: int, line: bytes) -> Charge:
    try:
        charge = from_plain(Charge, json.loads(line))
        if not (charge.noise >= 0 and 0 < charge.sampling <= 1 and charge.steps >= 0):
            raise ValueError("a number in it is out of range")
    except (ValueError, TypeError, KeyError) as error:
        raise BadSite(
            f"{path}, line {number}: cannot be read as a charge ({error}); what this data revealed "
            "so far is then unknown: restore the file from a copy",
            safe=phrase("the record of its privacy budget is damaged"),
        ) from None
    return charge


def _flush_names(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def budget_of(site: str, data: Path, limit: PrivacyLimit | None) -> PrivacyBudget:
    """Return the budget of a site's data, in the folder that its site file says."""
    beside = data.absolute().with_name(f"{data.name}.privacy")
    return PrivacyBudget(site, limit.folder if limit and limit.folder else beside, limit)
