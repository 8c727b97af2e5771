"""Files and folders that are made beside their place, and moved there when they are whole."""

import os
import tempfile
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

from grandrounds.errors import BadInput


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
