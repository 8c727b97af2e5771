"""What lies at a site is listed before any study says what is wanted of it: a study is proposed.

Nothing here leaves the site: it is for who proposes a study from data that lie before them.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import isnan, nan
from pathlib import Path
from statistics import median
from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from grandrounds.core.errors import BadSite
from grandrounds.data.masks import read_mask
from grandrounds.data.nifti import Grid, read_grid, read_voxels
from grandrounds.data.prepare import head_of
from grandrounds.data.session_files import SessionFiles, find_sessions
from grandrounds.data.stack import IMAGE_ARRAY, PATIENT_ROW, is_stack, read_arrays, stack_of
from grandrounds.data.table import DELIMITERS, PARTICIPANTS, numeric_columns, participants_of

DataKind: TypeAlias = Literal["volumes", "images", "table"]
Pair: TypeAlias = tuple[float, float]
_OF_HEAD = 0.05  # share of the largest row's voxels from which on a row shows the head: no noise


@dataclass(frozen=True)
class HeldSession:
    """What one session of a patient has: contrasts and masks, spacing and window in mm.

    `window` is the smallest one about the volume's middle that shows all of the brain (rows and
    columns); of an image it is its size in pixels.
    """

    patient: str
    names: frozenset[str]
    spacing: Pair = (1.0, 1.0)
    window: Pair = (0.0, 0.0)


@dataclass(frozen=True)
class Inventory:
    """What lies at one site: its sessions, and the variables that are known of its patients.

    `values` maps each variable to its patients' values, nan where one is missing.
    """

    site: str
    kind: DataKind
    sessions: tuple[HeldSession, ...]
    values: Mapping[str, Mapping[str, float]]

    @cached_property
    def patients(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(session.patient for session in self.sessions))

    @property
    def spacing(self) -> Pair:
        """Return the median spacing of rows and columns over sessions, in mm."""
        rows, columns = zip(*(session.spacing for session in self.sessions), strict=True)
        return median(rows), median(columns)

    @property
    def window(self) -> Pair:
        """Return the window that shows the brain of every session."""
        rows, columns = zip(*(session.window for session in self.sessions), strict=True)
        return max(rows), max(columns)

    def having(self, names: Iterable[str]) -> tuple[str, ...]:
        """Return the patients with a session that has all of these contrasts and masks.

        A variable among the names must be known of the patient.
        """
        wanted = set(names)
        known = {name for name in wanted if name in self.values}
        found = [
            session.patient
            for session in self.sessions
            if wanted - known <= session.names and all(self._knows(session, n) for n in known)
        ]
        return tuple(dict.fromkeys(found))

    def _knows(self, session: HeldSession, name: str) -> bool:
        return not isnan(self.values[name].get(session.patient, nan))

    def known(self, name: str) -> tuple[float, ...]:
        """Return the known values of a variable."""
        return tuple(value for value in self.values.get(name, {}).values() if not isnan(value))

    def is_binary(self, name: str) -> bool:
        """Tell whether a variable is 0 or 1 wherever it is known, and both occur."""
        return set(self.known(name)) == {0.0, 1.0}


def take_inventory(site: str, data: Path) -> Inventory:
    """List what lies at a site: volumes, an image stack, or a table.

    Raises `BadSite` and `BadImage`.
    """
    if is_stack(data):
        return _of_stack(site, data)
    if data.is_dir() and not _is_table_alone(data):
        return _of_volumes(site, data)
    if data.suffix.lower() in DELIMITERS or data.is_dir():
        return _of_table(site, data / PARTICIPANTS if data.is_dir() else data)
    raise BadSite(
        f"{data}: is no data that a study can be proposed for: a folder of NIfTI volumes, an image "
        "stack (.npz) or a table of patients (.tsv or .csv)."
    )


def _is_table_alone(folder: Path) -> bool:
    names = [path.name for path in folder.iterdir() if not path.name.startswith(".")]
    return PARTICIPANTS in names and not any(name.endswith((".nii", ".nii.gz")) for name in names)


def _of_table(site: str, path: Path) -> Inventory:
    columns = numeric_columns(path)
    patients = dict.fromkeys(patient for values in columns.values() for patient in values)
    return Inventory(site, "table", tuple(HeldSession(p, frozenset()) for p in patients), columns)


def _of_stack(site: str, path: Path) -> Inventory:
    arrays = read_arrays(path)
    images = arrays.get(IMAGE_ARRAY)
    names = [
        name
        for name, array in arrays.items()
        if name not in (IMAGE_ARRAY, PATIENT_ROW)
        and images is not None
        and array.shape == images.shape[:1]
        and array.dtype.kind in "biuf"
    ]
    stack = stack_of(arrays, names, path)
    height, width = stack.images.shape[1:]
    sessions = tuple(
        HeldSession(patient, frozenset(), window=(height, width))
        for patient, rows in stack.rows.items()
        for _ in rows
    )
    values = {name: {p: of[name] for p, of in stack.values.items()} for name in names}
    return Inventory(site, "images", sessions, values)


def _of_volumes(site: str, folder: Path) -> Inventory:
    sessions = tuple(_held(files) for files in find_sessions(folder))
    table = participants_of(folder)
    return Inventory(site, "volumes", sessions, numeric_columns(table) if table else {})


def _held(files: SessionFiles) -> HeldSession:
    path = next(iter([*files.contrasts.values(), *files.masks.values()]))
    grid = read_grid(path)
    _, rows, columns = grid.spacing
    names = frozenset([*files.contrasts, *files.masks])
    return HeldSession(files.patient, names, (rows, columns), _window(_brain(files), grid))


def _brain(files: SessionFiles) -> NDArray[np.bool_]:
    """Return where the brain is: its mask, or without one the head in the first contrast."""
    if "brain" in files.masks:
        return read_mask(files.masks["brain"]).voxels
    found = [head_of(read_voxels(path)) for path in list(files.contrasts.values())[:1]]
    return found[0] if found else read_mask(next(iter(files.masks.values()))).voxels


def _window(brain: NDArray[np.bool_], grid: Grid) -> Pair:
    rows, columns = brain.sum(axis=(0, 2)), brain.sum(axis=(0, 1))
    return _about_middle(rows, grid.spacing[1]), _about_middle(columns, grid.spacing[2])


def _about_middle(counts: NDArray[np.int64], spacing: float) -> float:
    """Return the length in mm, about the middle, that has every place with enough voxels."""
    shown = np.flatnonzero(counts >= max(1.0, _OF_HEAD * counts.max()))
    middle = (len(counts) - 1) / 2
    farthest = np.abs(shown - middle).max() if shown.size else middle
    return float(2 * farthest + 1) * spacing


def shared_names(inventories: Sequence[Inventory]) -> tuple[tuple[str, ...], dict[str, list[str]]]:
    """Return the contrasts that all sites have, and of each other one the sites that have it.

    Raises `BadSite` where two are spelled differently in case alone.
    """
    sites: dict[str, list[str]] = {}
    for each in inventories:
        for name in sorted({name for session in each.sessions for name in session.names}):
            sites.setdefault(name, []).append(each.site)
    spelled: dict[str, str] = {}
    for name in sites:
        other = spelled.setdefault(name.lower(), name)
        if other != name:
            raise BadSite(
                f"{other} (at {', '.join(sites[other])}) and {name} (at {', '.join(sites[name])}) "
                "differ in case alone; name the files of one contrast alike at all sites."
            )
    common = tuple(name for name, having in sites.items() if len(having) == len(inventories))
    return common, {name: having for name, having in sites.items() if name not in common}
