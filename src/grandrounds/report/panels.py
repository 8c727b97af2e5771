"""The pictures that sites kept of their test patients; each is read when it is shown."""

import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from grandrounds.errors import BadFolder

Image = NDArray[np.float32]
IMAGES = ("source", "target", "prediction")


@dataclass(frozen=True, eq=False)
class Panel:
    """One task's picture at a site, of one patient: images (H, W) in [0, 1]."""

    site: str
    task: str
    patient: str
    source: Image
    target: Image
    prediction: Image


@dataclass(frozen=True)
class KeptPanel:
    """Where a picture of one task and patient lies."""

    site: str
    task: str
    patient: str
    path: Path
    number: int

    def load(self) -> Panel:
        """Read the images. Raises `BadFolder`."""
        try:
            with np.load(self.path, allow_pickle=False) as arrays:
                images = [arrays[f"{self.number}/{name}"].astype(np.float32) for name in IMAGES]
        except (KeyError, ValueError, zipfile.BadZipFile) as error:
            raise _not_panels(self.path, error) from None
        return Panel(self.site, self.task, self.patient, *images)


def kept_panels(folder: Path, site: str) -> list[KeptPanel]:
    """List the pictures that a site kept in a run folder. Raises `BadFolder`."""
    path = folder / "sites" / site / "panels.npz"
    if not path.exists():  # a site with real patients shows images only where it was allowed
        return []
    try:
        with np.load(path, allow_pickle=False) as arrays:
            numbers = sorted(
                int(name.partition("/")[0]) for name in arrays.files if name.endswith("/prediction")
            )
            return [_kept(site, arrays, path=path, number=number) for number in numbers]
    except (KeyError, ValueError, zipfile.BadZipFile) as error:
        raise _not_panels(path, error) from None


def _kept(
    site: str, arrays: Mapping[str, NDArray[np.generic]], *, path: Path, number: int
) -> KeptPanel:
    task, patient = (str(arrays[f"{number}/{name}"]) for name in ("label", "patient"))
    return KeptPanel(site, task, patient, path, number)


def _not_panels(path: Path, error: Exception) -> BadFolder:
    return BadFolder(f"{path}: not a file of panels ({error}); remove it or test again")
