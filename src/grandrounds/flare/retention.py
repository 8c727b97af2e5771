"""What finished jobs leave behind in a kit is listed here, with the reason why it goes or stays.

Nothing is removed unasked. A job that is not over, a run that can be resumed, a ledger
and what lies behind a link are never removed.
"""

import json
import os
import shutil
import time
from collections.abc import Collection, Generator, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

from grandrounds.core.errors import BadFolder, BadStudy, DiskFailed
from grandrounds.core.names import check_name
from grandrounds.core.processes import hold, is_held
from grandrounds.core.run_folder import RunFolder, SiteFolder
from grandrounds.flare.job import IN_USE
from grandrounds.flare.job_store import JOB_ID, STORE, stored_jobs
from grandrounds.flare.kit import RUNS, Kit
from grandrounds.flare.session import AdminSession
from grandrounds.runs.folder import is_finished

DAYS = 30  # that results and logs of jobs stay, unless another number is given
DAY = 86_400.0  # seconds
_TRANSFER = "transfer"  # where NVFlare's server lays out what is sent and fetched
_STORED = "stored result"
_LINK = "a link: what it leads to is not touched"
_RUNNING = "it is running"


@dataclass(frozen=True)
class Leftover:
    """One thing that a job left, as a path in the kit; `stays` says why, empty where it goes."""

    where: str
    what: str
    bytes: int
    days: float  # since anything in it was written
    stays: str = ""

    @property
    def goes(self) -> bool:
        """Tell whether it is to be removed."""
        return not self.stays


def leftovers(kit: Kit, *, days: int = DAYS, runs: bool = False) -> list[Leftover]:
    """List what jobs left in the kit of a server or a site.

    What was written to within so many `days` stays, and so do runs, with the private weights in
    them, unless `runs` are asked for. Raises `BadStudy` for an admin's kit and less than a day.
    """
    check_days(days)
    if kit.kind == "admin":
        raise BadStudy(f"{kit.folder}: is an admin's kit, in which jobs leave nothing")
    found = [*_job_folders(kit), *_runs(kit, asked=runs)]
    if kit.kind == "server":
        found += [*_stored(kit), *_transfers(kit)]
    return [_young(each, days) for each in found]


def stored_leftovers(session: AdminSession, *, days: int = DAYS) -> list[Leftover]:
    """List the jobs in the store of a server that runs; it does not say how large they are.

    Raises `BadStudy` for less than a day.
    """
    check_days(days)
    found = list[Leftover]()
    for job in session.jobs():
        ago = session.days_since_end(job)
        stays = "" if job.is_over else "the server has not ended it yet"
        found.append(_young(Leftover(job.id, _STORED, 0, ago, stays), days))
    return found


def delete_stored(session: AdminSession, found: Iterable[Leftover]) -> list[Leftover]:
    """Let a server that runs delete the jobs that go, and return them."""
    gone = [each for each in found if each.goes]
    for each in gone:
        session.delete(each.where)
    return gone


def check_days(days: int) -> None:
    """Refuse a time in which a job may not have begun to write yet. Raises `BadStudy`."""
    if days < 1:
        raise BadStudy(f"--older-than {days}: must be 1 day or more")


def _young(found: Leftover, days: int) -> Leftover:
    is_young = found.goes and found.days < days
    return replace(found, stays=f"younger than {days} days") if is_young else found


def _job_folders(kit: Kit) -> Iterator[Leftover]:
    """List the folders in which NVFlare ran jobs, with their logs."""
    unsettled = {job.id for job in stored_jobs(kit) if not job.is_over}
    for path in sorted(kit.folder.iterdir()):
        if JOB_ID.fullmatch(path.name):
            stays = _RUNNING if is_held(path / IN_USE) else ""
            stays = stays or ("the server has not ended it yet" if path.name in unsettled else "")
            yield _leftover(kit, path, "job's folder", stays)


def _stored(kit: Kit) -> Iterator[Leftover]:
    """List the jobs, with their results, in the store of a server."""
    if link := _first_link(kit, STORE):
        yield link
        return
    runs = "the server runs: use the admin's kit" if is_held(kit.running) else ""
    for job in stored_jobs(kit):
        stays = runs if job.is_over else "the server has not ended it yet"
        yield _leftover(kit, job.folder, _STORED, stays)


def _transfers(kit: Kit) -> Iterator[Leftover]:
    """List what a transfer that broke off left at a server."""
    if link := _first_link(kit, _TRANSFER):
        yield link
        return
    for path in sorted((kit.folder / _TRANSFER).glob("*")):
        yield _leftover(kit, path, "broken transfer", "")


def _runs(kit: Kit, *, asked: bool) -> Iterator[Leftover]:
    """List the runs of a kit; ledgers are no part of them."""
    if link := _first_link(kit, RUNS):
        yield link
        return
    in_use = _runs_in_use(kit)
    for path in sorted((kit.folder / RUNS).glob("*")):
        stays = _why_run_stays(kit, path, in_use) or ("" if asked else "only with --runs")
        found = _leftover(kit, path, "run", stays)
        if found.bytes or not any(kept.exists() for kept in _records_of(kit, path)):
            yield found


def _why_run_stays(kit: Kit, path: Path, in_use: set[str]) -> str:
    try:
        check_name(path.name, "run", BadFolder)
    except BadFolder:
        return "its name is no run's"
    files = RunFolder(path)
    if path.name in in_use or is_held(files.lock):
        return _RUNNING
    site = SiteFolder(files.sites / kit.name)
    done = is_finished(path) if kit.kind == "server" else site.private().exists()
    return "" if done else "it can be resumed"


def _runs_in_use(kit: Kit) -> set[str]:
    """Return the names of the runs whose jobs are running in this kit."""
    held = [path for path in kit.folder.glob("*") if is_held(path / IN_USE)]
    return {name for path in held for name in _run_names(path)}


def _run_names(job: Path) -> Iterator[str]:
    for path in job.glob("app*/config/config_fed_*.json"):
        with suppress(OSError, ValueError, KeyError, TypeError, IndexError):
            config = cast(dict[str, Any], json.loads(path.read_text("utf-8")))
            parts = [*config.get("workflows", ()), *config.get("executors", ())]
            for part in parts:
                yield str(part.get("executor", part)["args"]["run"])


def _records_of(kit: Kit, run: Path) -> tuple[Path, ...]:
    """Return the files of a run that stay for ever: ledgers, and the log of an older version."""
    at_site = SiteFolder(RunFolder(run).sites / kit.name)
    return at_site.ledger, at_site.older_log, RunFolder(run).ledger


def _first_link(kit: Kit, inside: str) -> Leftover | None:
    """Return the first part of a path in a kit that is a link."""
    path = kit.folder
    for part in Path(inside).parts:
        path /= part
        if path.is_symlink():
            return _leftover(kit, path, "link", _LINK)
    return None


def _leftover(kit: Kit, path: Path, what: str, stays: str) -> Leftover:
    where = str(path.relative_to(kit.folder))
    if path.is_symlink():
        return Leftover(where, what, 0, 0.0, _LINK)
    kept = _records_of(kit, path) if what == "run" else ()
    size, newest = 0, path.lstat().st_mtime
    for file in _below(path):
        if file not in kept:
            status = file.lstat()
            size, newest = size + status.st_size, max(newest, status.st_mtime)
    return Leftover(where, what, size, max(0.0, time.time() - newest) / DAY, stays)


def _below(path: Path) -> Iterator[Path]:
    """Yield the files in a folder, and links as themselves; a file is alone."""
    if not path.is_dir():
        yield path
        return
    for folder, _, names in os.walk(path):  # which follows no link
        yield from (Path(folder) / name for name in names)


def remove_leftovers(kit: Kit, found: Iterable[Leftover]) -> list[Leftover]:
    """Remove what goes, and return it; what began to run meanwhile stays. Raises `DiskFailed`."""
    return [each for each in found if each.goes and _removed(kit, each)]


def _removed(kit: Kit, found: Leftover) -> bool:
    path = kit.folder / found.where
    if path.is_symlink() or is_held(path / IN_USE):
        return False
    try:
        if found.what == "run":
            return _remove_run(path, _records_of(kit, path))
        _remove(path)
    except OSError as error:
        raise DiskFailed(f"{path}: cannot be removed ({error.strerror})") from error
    return True


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()


def _remove_run(path: Path, kept: Collection[Path]) -> bool:
    """Remove a run but for its ledgers, while no other process can begin it."""
    with _locked(RunFolder(path).lock) as is_ours:
        if is_ours:
            _remove_but(path, kept)
    return is_ours


@contextmanager
def _locked(lock: Path) -> Generator[bool, None, None]:
    held = hold(lock)
    yield held is not None
    if held is not None:
        os.close(held)


def _remove_but(path: Path, kept: Collection[Path]) -> None:
    above = {folder for each in kept if each.exists() for folder in each.parents}
    for child in path.iterdir():
        if child in kept:
            continue
        if child in above and not child.is_symlink():
            _remove_but(child, kept)
        else:
            _remove(child)
    with suppress(OSError):  # a ledger is in it
        path.rmdir()
