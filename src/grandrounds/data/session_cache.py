"""Prepared sessions are kept on the disk under the digest of all that they depend on."""

import hashlib
import json
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from grandrounds.core.errors import BadFolder
from grandrounds.core.sentence import Reason, phrase
from grandrounds.core.serialization import from_plain
from grandrounds.data.cohort import Extent, Session

DESCRIPTION = "session.json"
_HEADERS: dict[tuple[int, int], Callable[..., Any]] = {
    (1, 0): np.lib.format.read_array_header_1_0,
    (2, 0): np.lib.format.read_array_header_2_0,
}
_CUT = "the disk took a part of a file alone, as a full one does"


def cached_session(cache: Path, key: str, make: Callable[[], Session]) -> Session:
    """Return the session stored under `key` as read-only memory maps.

    A missing or damaged entry is made first. Raises `BadFolder` where `cache` cannot be written.
    """
    folder = cache / key
    entry = _intact(folder) or _store(make(), folder)
    arrays = {name: mapped(folder / f"{name}.npy") for name in entry.digests}
    images = arrays.pop("images")
    known = cache_key(*sorted(f"{name}={digest}" for name, digest in entry.digests.items()))
    return Session(
        entry.patient,
        entry.session,
        entry.contrasts,
        images,
        arrays,
        digest=known,
        prints=(entry.digests["images"],),
        heights=entry.heights,
        extents=entry.extents,
        spacing=entry.spacing,
    )


def mapped(path: Path) -> NDArray[Any]:
    """Return a `.npy` file's array, read-only, from a memory map that keeps no file open.

    Each map of `numpy.load` holds a descriptor, of which a process often has no more than 1,024: a
    hospital with some hundred sessions would have none left.
    """
    with path.open("rb") as stream:
        version = np.lib.format.read_magic(stream)
        shape, by_column, dtype = _HEADERS[version](stream)
        start = stream.tell()
    size = path.stat().st_size
    whole = torch.from_file(str(path), shared=False, size=size, dtype=torch.uint8)
    array = whole.numpy()[start:].view(dtype).reshape(shape, order="F" if by_column else "C")
    array.flags.writeable = False
    return array


def cache_key(*parts: str) -> str:
    """Return the SHA-256 of all that a cached session depends on."""
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def file_digest(path: Path) -> str:
    """Return the SHA-256 of a file. Raises `OSError`."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


@dataclass(frozen=True)
class _Entry:
    """A cache entry's description; `digests` maps an array's name to its file's SHA-256."""

    patient: str
    session: str
    contrasts: tuple[str, ...]
    digests: Mapping[str, str]
    heights: tuple[float, ...] = ()
    extents: Mapping[str, Extent] = field(default_factory=dict[str, Extent])
    spacing: tuple[float, ...] = ()  # empty in entries of older versions


def _intact(folder: Path) -> _Entry | None:
    """Read a cache entry's description, or return None where the entry is missing or damaged."""
    try:
        entry = from_plain(_Entry, json.loads((folder / DESCRIPTION).read_text()))
        intact = all(
            file_digest(folder / f"{n}.npy") == digest for n, digest in entry.digests.items()
        )
    except (OSError, ValueError, TypeError, KeyError):
        return None
    return entry if intact else None


def _store(session: Session, folder: Path) -> _Entry:
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".") as scratch:
            entry = _write(session, Path(scratch) / "new")
            _put(Path(scratch), folder)
    except OSError as error:
        raise BadFolder(
            f"{folder.parent}: cannot keep prepared slices ({error.strerror or _CUT}); "
            'the cache must be a folder that can be written; choose one with cache = "FOLDER" in '
            "the site file, or with GRANDROUNDS_CACHE.",
            safe=phrase("prepared slices cannot be kept ({why})", why=Reason.of(error)),
        ) from None
    return entry


def _put(scratch: Path, folder: Path) -> None:
    """Move a new entry to its place; an intact one, which may be in use, is never moved."""
    try:
        (scratch / "new").rename(folder)
    except OSError:
        if _intact(folder):  # another process stored the same session a moment earlier
            return
        folder.rename(scratch / "damaged")
        (scratch / "new").rename(folder)


def _write(session: Session, folder: Path) -> _Entry:
    folder.mkdir()
    arrays = {"images": session.images, **session.masks}
    for name, array in arrays.items():
        np.save(folder / f"{name}.npy", array)
    digests = {name: file_digest(folder / f"{name}.npy") for name in arrays}
    who = (session.patient, session.session, session.contrasts)
    entry = _Entry(*who, digests, session.heights, session.extents, session.spacing)
    (folder / DESCRIPTION).write_text(json.dumps(asdict(entry)))
    return entry
