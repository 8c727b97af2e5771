"""The folder of prepared volumes: what belongs to it, what is finished, what it was made from.

Beside the volumes lies a folder `.preparation`, with a record for each session. A record is written
before the first file of its session, and again, as done, after the last: whatever ends the program,
no half session counts as whole, and no file counts as another's.
"""

import hashlib
import json
import os
import re
from collections.abc import Generator, Iterable, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from grandrounds.core.errors import BadFolder, BadImage, BadSite
from grandrounds.core.files import make_folder, remove, write_bytes, write_text
from grandrounds.core.processes import hold
from grandrounds.core.sentence import Reason, phrase
from grandrounds.core.serialization import from_plain
from grandrounds.data.session_cache import file_digest
from grandrounds.data.session_files import PREPARATION, UNFINISHED, listed
from grandrounds.data.table import PARTICIPANTS

QUALITY_PAGE = "quality.html"
_REFUSAL = "{path}: the disk refused a prepared file ({reason}); free some space and run it again."
_VOLUME = re.compile(r"(?i).*\.nii(\.gz)?|sub-.*\.json")
_LEFT_OVER = re.compile(r"\..+\.\d+\.tmp")  # of a process that was killed while it wrote


@dataclass(frozen=True)
class FileStamp:
    """A file as it was seen: its SHA-256, and what tells without reading that it is the same."""

    digest: str
    size: int
    modified: int
    changed: int


@dataclass(frozen=True)
class SessionRecord:
    """What a session was made from and into; `done` once all of it is on the disk."""

    key: str
    inputs: Mapping[str, FileStamp]
    outputs: tuple[str, ...]
    done: bool = False
    stamps: Mapping[str, FileStamp] = field(default_factory=dict[str, FileStamp])
    quality: Mapping[str, Any] = field(default_factory=dict[str, Any])


def file_stamp(path: Path, known: FileStamp | None = None) -> FileStamp:
    """Return a file's stamp; it is read only where it is not as it was known. Raises `BadImage`."""
    try:
        if not path.is_file():
            raise BadImage(
                f"{path}: is no file (a folder, a device or a broken link); a volume must be one.",
                safe=phrase("a volume is no file"),
            )
        facts = path.stat()
        now = (facts.st_size, facts.st_mtime_ns, facts.st_ctime_ns)
        if known and now == (known.size, known.modified, known.changed):
            return known
        return FileStamp(file_digest(path), *now)
    except OSError as error:
        raise BadImage(
            f"{path}: {error.strerror}; the file must be readable.",
            safe=phrase("a volume cannot be read ({why})", why=Reason.of(error)),
        ) from None


def key_of(settings: Mapping[str, object], digests: Mapping[str, str]) -> str:
    """Return the SHA-256 of all that a prepared session depends on."""
    content = json.dumps([settings, dict(digests)], sort_keys=True, default=str)
    return hashlib.sha256(content.encode()).hexdigest()


@dataclass(frozen=True)
class PreparedFolder:
    """A folder that this program prepares volumes into, and no other volumes lie in."""

    folder: Path

    @contextmanager
    def held(self) -> Generator[None, None, None]:
        """Make the folder, hold it, and clean up after a killed process.

        Raises `BadSite` where it cannot be used, and `BadFolder` where another process holds it.
        """
        below = self.folder / PREPARATION
        if below.is_symlink():
            raise BadSite(f"{below}: is a link; it must be a folder of its own, so remove it.")
        try:
            make_folder(below)
            held = hold(below / "lock")
        except OSError as error:
            raise BadSite(
                f"{self.folder}: cannot be written ({error.strerror}); data must be a folder for "
                "the prepared volumes."
            ) from None
        if held is None:
            raise BadFolder(
                f"{self.folder}: is being prepared by another process; wait until it has ended."
            )
        try:
            self._check_foreign()
            for folder in (self.folder, below):
                for path in [p for p in folder.iterdir() if _LEFT_OVER.fullmatch(p.name)]:
                    remove(path, refusal=_REFUSAL)
            yield
        finally:
            os.close(held)

    def _check_foreign(self) -> None:
        """Refuse a folder with volumes or sidecars of others: they would be trained on, or lost."""
        own = {name for record in self.records().values() for name in record.outputs}
        names = sorted(p.name for p in self.folder.iterdir() if _VOLUME.fullmatch(p.name))
        foreign = [name for name in names if name not in own]
        if foreign:
            raise BadSite(
                f"{self.folder}: {listed(foreign)}: not made here by `site prepare`; data must be "
                "a folder for prepared volumes alone, so name another, or move these."
            )

    def records(self) -> Mapping[str, SessionRecord]:
        """Return the record of each session; one that cannot be read counts as not there."""
        found: dict[str, SessionRecord] = {}
        for path in sorted((self.folder / PREPARATION).glob("sub-*.json")):
            with suppress(OSError, ValueError, TypeError, KeyError):
                found[path.stem] = from_plain(SessionRecord, json.loads(path.read_text("utf-8")))
        return found

    def is_whole(self, record: SessionRecord, key: str) -> bool:
        """Tell whether a session was finished with this key, and its files are still as then."""
        if not record.done or record.key != key:
            return False
        try:
            return all(
                file_stamp(self.folder / name, stamp).digest == stamp.digest
                for name, stamp in record.stamps.items()
            )
        except BadImage:  # a file is gone
            return False

    def begin(self, name: str, record: SessionRecord) -> None:
        """Write down which files a session will have; those that it had besides are removed."""
        before = self.records().get(name)
        outputs = set(record.outputs) | set(before.outputs if before else ())
        self._write(name, SessionRecord(record.key, record.inputs, tuple(sorted(outputs))))
        for old in sorted(outputs):
            remove(self.folder / old, refusal=_REFUSAL)

    def put(
        self,
        name: str,
        record: SessionRecord,
        files: Mapping[str, bytes],
        quality: Mapping[str, Any],
    ) -> None:
        """Write a session's files, each whole, and then that they are all there."""
        for file, content in files.items():
            write_bytes(self.folder / file, content, refusal=_REFUSAL)
        stamps = {file: file_stamp(self.folder / file) for file in files}
        outputs = tuple(sorted(files))
        self._write(name, SessionRecord(record.key, record.inputs, outputs, True, stamps, quality))

    def forget(self, name: str) -> int:
        """Remove a session's files and record; return how many volumes that were."""
        record = self.records().get(name)
        for file in record.outputs if record else ():
            remove(self.folder / file, refusal=_REFUSAL)
        remove(self.folder / PREPARATION / f"{name}.json", refusal=_REFUSAL)
        return sum(file.endswith(".nii.gz") for file in (record.outputs if record else ()))

    def _write(self, name: str, record: SessionRecord) -> None:
        path = self.folder / PREPARATION / f"{name}.json"
        write_text(path, json.dumps(asdict(record)), refusal=_REFUSAL)

    def mark(self, *, finished: bool) -> None:
        """Say whether the folder is as it should be: until then nothing trains on it."""
        marker = self.folder / UNFINISHED
        if finished:
            remove(marker, refusal=_REFUSAL)
        else:
            write_text(marker, "Give `grandrounds site prepare` again.\n", refusal=_REFUSAL)

    def copy_table(self, source: Path) -> None:
        """Copy the table of patients from the source, unless another one lies in the folder."""
        table, copy = source / PARTICIPANTS, self.folder / PARTICIPANTS
        noted = self.folder / PREPARATION / "table.sha256"
        if not table.is_file():
            return
        ours = noted.read_text("utf-8") if noted.is_file() else ""
        if copy.exists() and file_digest(copy) != ours:
            return
        if file_digest(table) != ours or not copy.exists():
            write_text(noted, file_digest(table), refusal=_REFUSAL)
            write_bytes(copy, table.read_bytes(), refusal=_REFUSAL)


def inputs_of(paths: Iterable[Path], known: Mapping[str, FileStamp]) -> Mapping[str, FileStamp]:
    """Return the stamps of a session's files and of the sidecars beside them, by name."""
    return {path.name: file_stamp(path, known.get(path.name)) for path in paths}
