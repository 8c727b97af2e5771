"""The tutorial notebooks, and a kernel that runs them as Jupyter does."""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

NOTEBOOKS = sorted((Path(__file__).parents[2] / "examples" / "notebooks").glob("*.ipynb"))
PACKAGES = ("ipykernel", "nbclient", "nbformat")
LONG = 300  # seconds for a cell, on a busy machine
MISSING = [name for name in PACKAGES if find_spec(name) is None]

needs_kernel = pytest.mark.skipif(
    bool(MISSING) and os.environ.get("CI") != "true",
    reason=f"not installed: {', '.join(MISSING)}; pip install '.[dev]'",
)


@contextmanager
def _nothing_of_the_user(folder: Path) -> Iterator[None]:
    """Jupyter's and matplotlib's settings and files are in a folder of their own."""
    names = ("JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR", "IPYTHONDIR")
    with pytest.MonkeyPatch.context() as patch:
        for name in (*names, "MPLCONFIGDIR"):
            patch.setenv(name, str(folder / name.lower()))
        patch.setenv("JUPYTER_PLATFORM_DIRS", "1")
        yield


def executed(cells: Any, folder: Path, settings: Path) -> Any:
    """Run a notebook, or the text of its cells, in a kernel whose folder is `folder`."""
    import nbformat
    from nbclient import NotebookClient

    notebook = _of(cells) if isinstance(cells, Sequence) else nbformat.read(cells, as_version=4)
    where = {"metadata": {"path": str(folder)}}
    with _nothing_of_the_user(settings):
        NotebookClient(notebook, kernel_name="python3", timeout=LONG, resources=where).execute()
    return notebook


def _of(cells: Sequence[str]) -> Any:
    from nbformat.v4 import new_code_cell, new_notebook

    return new_notebook(cells=[new_code_cell(text) for text in cells])


def outputs(notebook: Any) -> list[Any]:
    """All outputs of its cells."""
    return [each for cell in notebook.cells for each in cell.get("outputs", ())]


def said(outputs: Sequence[Any]) -> str:
    """What was printed, and the text of what was shown."""
    return "\n".join(
        each["text"] if each["output_type"] == "stream" else each["data"].get("text/plain", "")
        for each in outputs
        if each["output_type"] in ("stream", "display_data", "execute_result")
    )
