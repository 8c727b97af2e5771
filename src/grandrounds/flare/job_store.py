"""The jobs that a server has stored on its own disk; a server that starts settles those it lost."""

# NVFlare has no type stubs.
# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false

import json
import re
import shutil
from collections.abc import Generator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, cast
from zipfile import BadZipFile, ZipFile

from nvflare.apis.storage import WORKSPACE
from nvflare.app_common.storages.filesystem_storage import FilesystemStorage

from grandrounds.core.errors import BadInput
from grandrounds.core.events import RunFinished
from grandrounds.core.files import write_text
from grandrounds.core.journal import read_journal
from grandrounds.core.run_folder import RunFolder
from grandrounds.flare.job import RESULT, STUDY, check_run, hand_out
from grandrounds.flare.kit import RUNS, Kit
from grandrounds.flare.session import ABANDONED, DONE
from grandrounds.runs.folder import check_unchanged, is_finished
from grandrounds.study.installed import look_up
from grandrounds.study.study import Study

STORE = "storage/jobs-storage"  # in the server's kit
BY_NVFLARE = "/tmp/nvflare"  # where a kit lets a server store its jobs before its first start
JOB_ID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")  # as NVFlare names jobs
_PLACE = re.compile(r'"((?:[^"\\]|\\.)*)/((?:jobs|snapshot)-storage)"')
_RESOURCES = "resources.json"
_CONFIG = "config/config_fed_server.json"
_RUNNING = ("RUNNING", "DISPATCHED")


@dataclass(frozen=True)
class StoredJob:
    """One job in the store: what NVFlare says of it, and its folder there."""

    id: str
    status: str
    submitted: float  # unix seconds
    started: str  # in ISO 8601; empty before it starts
    folder: Path

    @property
    def is_running(self) -> bool:
        """Tell whether the store calls the job running; after a killed server it still does."""
        return self.status in _RUNNING

    @property
    def is_over(self) -> bool:
        """Tell whether the job has ended, with or without success."""
        return self.status.startswith("FINISHED")


def stored_jobs(kit: Kit) -> list[StoredJob]:
    """List the jobs in a server's store, the oldest first; what is no job is left out."""
    folders = [path for path in (kit.folder / STORE).glob("*") if JOB_ID.fullmatch(path.name)]
    found = [_stored(folder) for folder in folders if not folder.is_symlink()]
    return sorted((job for job in found if job), key=lambda job: (job.submitted, job.id))


def _stored(folder: Path) -> StoredJob | None:
    try:
        meta = cast(dict[str, Any], json.loads((folder / "meta").read_text("utf-8")))
        status, submitted = str(meta["status"]), float(meta["submit_time"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return StoredJob(folder.name, status, submitted, str(meta.get("start_time") or ""), folder)


def settle_lost_jobs(kit: Kit) -> dict[str, str]:
    """Store what became of the jobs that a server lost; return the status of each.

    Only for a server that does not run. A job whose journal says that its run finished is done, and
    its result is stored, as the server would have done it; any other is abandoned.
    """
    return {job.id: _settle(kit, job) for job in stored_jobs(kit) if job.is_running}


def _settle(kit: Kit, job: StoredJob) -> str:
    storage, status = FilesystemStorage(), ABANDONED
    with suppress(BadInput, BadZipFile, OSError, KeyError, ValueError), _study_of(job) as named:
        study, name = named
        run = kit.folder / RUNS / name
        check_unchanged(run, study)
        if _finished(run, job):
            _store_result(storage, study, run, kit.folder / job.id, job)
            status = DONE
    storage.update_meta(str(job.folder.absolute()), {"status": status}, replace=False)
    return status


def keep_store_in_kit(kit: Kit) -> None:
    """Make a server store its jobs in its own kit, wherever that lies now.

    A place that somebody has chosen elsewhere stays.
    """
    text = _settings(kit)
    if (settings := _moved_in(kit, text)) != text:
        write_text(kit.local / _RESOURCES, settings)


def stores(kit: Kit) -> tuple[list[str], list[str]]:
    """Return where a server stores its jobs, by its settings: now, and once it is started."""
    text = _settings(kit)
    return _places(text), _places(_moved_in(kit, text))


def _settings(kit: Kit) -> str:
    return (kit.local / _RESOURCES).read_text("utf-8")


def _moved_in(kit: Kit, settings: str) -> str:
    own = store_of(kit)

    def in_kit(place: re.Match[str]) -> str:
        is_a_kit_s = place[1] == BY_NVFLARE or place[1].endswith(f"/{own.name}")
        return json.dumps(str(own / place[2])) if is_a_kit_s else place[0]

    return _PLACE.sub(in_kit, settings)


def _places(settings: str) -> list[str]:
    return sorted({str(json.loads(f'"{place[1]}"')) for place in _PLACE.finditer(settings)})


def store_of(kit: Kit) -> Path:
    """Return the folder in a server's kit that holds what the server stores."""
    return (kit.folder / STORE).absolute().parent


@contextmanager
def _study_of(job: StoredJob) -> Generator[tuple[Study, str], None, None]:
    """Yield the study of a stored job, and the name of its run. Raises what a bad job raises."""
    with ZipFile(job.folder / "data") as archive, TemporaryDirectory() as scratch:
        [config] = [name for name in archive.namelist() if name.endswith(f"/{_CONFIG}")]
        workflow = json.loads(archive.read(config))["workflows"][0]
        path = Path(scratch) / STUDY
        path.write_bytes(archive.read(f"{config.removesuffix(_CONFIG)}config/{STUDY}"))
        yield look_up(path).read(), check_run(workflow["args"]["run"])


def _finished(run: Path, job: StoredJob) -> bool:
    """Tell whether a run ended well, and after this job had begun: not an older job's end."""
    if not is_finished(run):
        return False
    moment, last = read_journal(RunFolder(run).journal)[-1]
    began = datetime.fromisoformat(job.started).timestamp() if job.started else job.submitted
    return isinstance(last, RunFinished) and moment >= began


def _store_result(
    storage: FilesystemStorage, study: Study, run: Path, folder: Path, job: StoredJob
) -> None:
    """Store a run as its job's result, unless that was done before the server was killed."""
    if not (job.folder / WORKSPACE).exists():
        hand_out(study, run, folder / RESULT)
        storage.update_object(str(job.folder.absolute()), [str(folder.absolute())], WORKSPACE)
    shutil.rmtree(folder, ignore_errors=True)
