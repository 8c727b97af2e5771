"""Files and folders are made beside their place, and moved there when they are whole."""

import os
import tempfile
from collections.abc import Generator
from contextlib import contextmanager, suppress
from pathlib import Path

from safetensors import SafetensorError

from grandrounds.core.errors import BadInput, DiskFailed


@contextmanager
def placed(out: Path) -> Generator[Path, None, None]:
    """Give a name to write to; it becomes `out` at the end, or nothing is left of it.

    Raises `BadInput` where something is there already, or where nothing can be written.
    """
    if out.exists():
        raise BadInput(f"{out}: is there already; choose another name")
    if not (out.parent.is_dir() and os.access(out.parent, os.W_OK)):
        raise BadInput(f"{out}: there is no folder {out.parent} that can be written to; make it")
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=".") as scratch:
        path = Path(scratch) / out.name
        yield path
        path.rename(out)


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file so that a reader sees all of it or nothing. Raises `DiskFailed`."""
    with appearing(path) as temporary:
        temporary.write_bytes(content)


@contextmanager
def appearing(path: Path) -> Generator[Path, None, None]:
    """Let a file be written under a temporary name, flush it to the disk, then rename it."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.touch()
        mode = temporary.stat().st_mode
        yield temporary
        temporary.chmod(mode)  # safetensors would let this user alone read it
        with temporary.open("r+b") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    except (OSError, SafetensorError) as error:
        with suppress(OSError):  # nothing to remove where the folder itself could not be made
            temporary.unlink()
        raise DiskFailed(
            f"cannot write {path}: {_refusal(error)}; what was saved before is intact. "
            "Free some space or correct the folder, then continue with --resume."
        ) from error


def _refusal(error: OSError | SafetensorError) -> str:
    """Give the system's own words, which safetensors puts behind "I/O error: "."""
    if isinstance(error, OSError):
        return str(error.strerror)
    return str(error).partition("I/O error: ")[2].partition(" (os error")[0] or str(error)
