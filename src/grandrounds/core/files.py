"""Files and folders appear under their names only when they are complete."""

import errno
import os
import tempfile
from collections.abc import Generator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from grandrounds.core.errors import BadFolder, BadInput, DiskFailed
from grandrounds.core.sentence import Reason, phrase

STOPS_RUN = (
    "cannot write {path}: {reason}; what was saved before is intact. "
    "Free some space or correct the folder, then continue with --resume."
)


@contextmanager
def create_whole(out: Path) -> Generator[Path, None, None]:
    """Yield a path to write to; it is renamed to `out` at the end, or removed after an error.

    Raises `BadInput` where `out` exists already, or where nothing can be written.
    """
    if out.exists():
        raise BadInput(f"{out}: is there already; choose another name")
    if not (out.parent.is_dir() and os.access(out.parent, os.W_OK)):
        raise BadInput(f"{out}: there is no folder {out.parent} that can be written to; make it")
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=".") as scratch:
        path = Path(scratch) / out.name
        yield path
        for written in (path, *path.rglob("*")):
            if written.is_file():
                _flush(written)
        path.rename(out)
        _flush_folder(out.parent)


def make_output_folder(path: Path) -> None:
    """Make the folder that a user names for results. Raises `BadFolder` where a file is there."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise BadFolder(
            f"{path}: cannot be made into a folder ({error.strerror}); choose another with --out"
        ) from None


def write_text(path: Path, text: str, *, refusal: str = STOPS_RUN) -> None:
    """Write a file in UTF-8, as `write_bytes` does."""
    write_bytes(path, text.encode(), refusal=refusal)


def write_bytes(
    path: Path, content: bytes, *, refusal: str = STOPS_RUN, private: bool = False
) -> None:
    """Write a file so that a reader sees all of it or nothing, even after a power cut.

    Raises `DiskFailed` with `refusal`, in which {path} and {reason} are filled in.
    """
    with appearing(path, refusal=refusal, private=private) as temporary:
        temporary.write_bytes(content)


@contextmanager
def appearing(
    path: Path, *, refusal: str = STOPS_RUN, private: bool = False
) -> Generator[Path, None, None]:
    """Yield a temporary name to write a file to; flush it to the disk, then rename it.

    The folder is flushed, too: without that, a power cut may bring the older file back. What is
    `private` its owner alone can read, the file and its folder, whatever the umask is.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        (make_private_folder if private else make_folder)(path.parent)
        temporary.touch(0o600 if private else 0o666)
        mode = 0o600 if private else temporary.stat().st_mode
        yield temporary
        temporary.chmod(mode)  # safetensors would let this user alone read it
        _flush(temporary)
        temporary.replace(path)
        _flush_folder(path.parent)
    except OSError as error:
        with suppress(OSError):  # nothing to remove where the folder itself could not be made
            temporary.unlink()
        raise _refused(refusal, path, error) from error


def append_line(path: Path, line: bytes, *, flush: bool = False) -> None:
    """Append a line, after cutting one that a killed process or a full disk left unfinished.

    With `flush` it is on the disk, with all before it. Raises `OSError`.
    """
    with path.open("ab+") as file:
        _cut_torn_line(file)
        file.write(line + b"\n")
        if flush:
            file.flush()
            os.fsync(file.fileno())


def _cut_torn_line(file: BinaryIO) -> None:
    end = file.seek(0, os.SEEK_END)
    if end == 0:
        return
    file.seek(end - 1)
    if file.read(1) == b"\n":
        return
    file.seek(0)
    file.truncate(len(whole_lines(file.read())))


def whole_lines(raw: bytes) -> bytes:
    """Return a file's content without an unfinished last line."""
    return raw[: raw.rfind(b"\n") + 1]


def make_folder(path: Path, mode: int = 0o777) -> None:
    """Make a folder and those above it that are missing, so that they survive a power cut."""
    missing = [each for each in (path, *path.parents) if not each.exists()]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.mkdir(mode, exist_ok=True)
    for made in reversed(missing):
        _flush_folder(made.parent)


def make_private_folder(path: Path) -> None:
    """Make a folder that its owner alone can open; one that an older version made, too.

    Raises `DiskFailed`.
    """
    try:
        make_folder(path, 0o700)
        if path.stat().st_mode & 0o777 != 0o700:
            path.chmod(0o700)
    except OSError as error:
        raise _refused(STOPS_RUN, path, error) from error


def remove(path: Path, *, refusal: str) -> None:
    """Remove a file, where there is one. Raises `DiskFailed` as `write_bytes` does."""
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        raise _refused(refusal, path, error) from error


def _refused(refusal: str, path: Path, error: OSError) -> DiskFailed:
    return DiskFailed(
        refusal.format(path=path, reason=error.strerror),
        safe=phrase("the disk refused a file ({why})", why=Reason.of(error)),
    )


def _flush(path: Path) -> None:
    with path.open("r+b") as file:
        os.fsync(file.fileno())


def _flush_folder(path: Path) -> None:
    """Flush a folder's names; some network disks cannot, and then do it by themselves or never."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.EBADF):
            raise
    finally:
        os.close(descriptor)
