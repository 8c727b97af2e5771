"""Files that the package brings along."""

from importlib.resources import files
from pathlib import Path


def studies() -> Path:
    """Give the folder of the example studies."""
    return Path(str(files("grandrounds"))) / "studies"
