"""What is known of each person at a site is gathered from images, headers, sidecars and tables.

Nothing here leaves the site: `data.disclosure` makes of it what may.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import isnan
from statistics import fmean
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from grandrounds.core.sentence import Sentence
from grandrounds.core.site_statistics import EVERYONE_HERE, HISTOGRAM_BINS
from grandrounds.data.acquisition import QUANTITIES, Acquisition, read_acquisition
from grandrounds.data.availability import VARIABLES, holds, needs, serves
from grandrounds.data.cohort import Session
from grandrounds.data.elements import Elements, Plane
from grandrounds.data.nifti import Grid, read_grid
from grandrounds.data.prepare import used_contrasts
from grandrounds.data.session_files import SessionFiles

AGE = "age"  # in years, a column of participants.tsv
MIXED = "mixed"  # of a person whose volumes are of several kinds
_THICKER = 1.1  # times the other two axes: from there on slices lie across the third one
_PLANES: tuple[Plane, Plane, Plane] = ("axial", "coronal", "sagittal")
_MM3_PER_ML = 1000.0
PersonNumbers: TypeAlias = Mapping[str, Mapping[str, float]]  # of a quantity, then of a group


@dataclass(frozen=True)
class ScannedVolume:
    """One volume of one person: of which contrast, how it was acquired, and on which grid.

    `doubts` say which values of its sidecar cannot be, and were taken as unknown.
    """

    patient: str
    contrast: str
    acquisition: Acquisition = field(default_factory=Acquisition)
    grid: Grid | None = None
    doubts: tuple[Sentence, ...] = ()

    @property
    def numbers(self) -> Mapping[str, float]:
        """Return its quantities: times in ms, angle in degrees, field in T, spacing in mm."""
        known = {name: getattr(self.acquisition, name) for name in QUANTITIES}
        if self.grid:
            across, rows, columns = self.grid.spacing
            known |= {"spacing_through": across, "spacing_rows": rows, "spacing_columns": columns}
            known |= dict(zip(("slices", "rows", "columns"), self.grid.shape, strict=True))
        return {name: float(value) for name, value in known.items() if value is not None}

    @property
    def kinds(self) -> Mapping[str, str]:
        """Return its qualities in words."""
        how = self.acquisition
        known = {
            "sequence": how.family,
            "dimensions": f"{how.dimensions}D" if how.dimensions else None,
            "contrast_agent": {True: "given", False: "not given", None: None}[how.contrast_agent],
            "orientation": plane_of(self.grid) if self.grid else None,
        }
        return {name: word for name, word in known.items() if word is not None}


def plane_of(grid: Grid) -> Plane | None:
    """Return the plane of a volume's slices, which are thicker than wide; None if they are not."""
    thickest, *others = sorted(grid.spacing, reverse=True)
    if thickest <= _THICKER * others[0]:
        return None
    return _PLANES[grid.spacing.index(thickest)]


@dataclass(frozen=True)
class Person:
    """All that is known of one person.

    `groups` are the contrasts, masks, variables and tasks that some session of his has; `numbers`
    the means over his volumes or sessions; `histograms` the shares of his voxels' intensities;
    `labels` the values in each of his masks.
    """

    groups: frozenset[str]
    numbers: PersonNumbers = field(default_factory=dict[str, Mapping[str, float]])
    kinds: Mapping[str, Mapping[str, str]] = field(default_factory=dict[str, Mapping[str, str]])
    histograms: Mapping[str, NDArray[np.float64]] = field(
        default_factory=dict[str, NDArray[np.float64]]
    )
    labels: Mapping[str, frozenset[float]] = field(default_factory=dict[str, frozenset[float]])
    volumes: tuple[ScannedVolume, ...] = ()


People: TypeAlias = Mapping[str, Person]


def data_names(elements: Elements, tasks: Iterable[str]) -> tuple[str, ...]:
    """Return the contrasts, masks and variables of a study, each once."""
    needed = (name for task in tasks for name in needs(task) if name != VARIABLES)
    age = (AGE,) if elements.age else ()
    listed = (*elements.contrasts, *elements.variables, *age, *needed, *(elements.labels or ()))
    return tuple(dict.fromkeys(listed))


def values_of(variable: str) -> tuple[str, str]:
    """Return the groups of people whose variable is 0, and 1."""
    return f"{variable} = 0", f"{variable} = 1"


def volumes_of(files: Sequence[SessionFiles], elements: Elements) -> tuple[ScannedVolume, ...]:
    """Read the headers and sidecars of the study's volumes. Raises `BadImage`."""
    return tuple(
        ScannedVolume(session.patient, contrast, acquisition, read_grid(path), doubts)
        for session in files
        for contrast in used_contrasts(session, elements)
        for path in (session.contrasts[contrast],)
        for acquisition, doubts in (read_acquisition(path),)
    )


def people_of(
    sessions: Iterable[Session],
    volumes: Sequence[ScannedVolume],
    elements: Elements,
    tasks: Sequence[str],
    ages: Mapping[str, float],
) -> dict[str, Person]:
    """Gather what is known of each patient; `ages` are in years, nan where unknown."""
    own_sessions: dict[str, list[Session]] = {}
    own_volumes: dict[str, list[ScannedVolume]] = {}
    for session in sessions:
        own_sessions.setdefault(session.patient, []).append(session)
    for volume in volumes:
        own_volumes.setdefault(volume.patient, []).append(volume)
    return {
        patient: _with_age(
            _person(own, own_volumes.get(patient, []), elements, tasks),
            ages.get(patient, float("nan")),
        )
        for patient, own in own_sessions.items()
    }


def _person(
    sessions: Sequence[Session],
    volumes: Sequence[ScannedVolume],
    elements: Elements,
    tasks: Sequence[str],
) -> Person:
    names = data_names(elements, tasks)
    groups = {name for name in names for session in sessions if holds(session, name)}
    groups |= {task for task in tasks for session in sessions if serves(session, task)}
    values = {name: _known(s.values[name] for s in sessions if name in s.values) for name in names}
    known = {name: fmean(found) for name, found in values.items() if found}
    groups |= {
        group
        for name, value in known.items()
        for group, told in zip(values_of(name), (0, 1), strict=True)
        if value == told
    }
    numbers: dict[str, Mapping[str, float]] = dict(_means(volumes))
    numbers["sessions"] = {EVERYONE_HERE: float(len(sessions))}
    numbers["value"] = known
    numbers["label_volume"] = _label_volumes(sessions)
    return Person(
        frozenset(groups),
        numbers,
        _kinds(volumes),
        {
            name: shares
            for name in elements.contrasts
            if (shares := _shares(sessions, name)) is not None
        },
        _labels(sessions),
        tuple(volumes),
    )


def _with_age(person: Person, age: float) -> Person:
    if isnan(age):
        return person
    value = {**person.numbers.get("value", {}), AGE: age}
    numbers = {**person.numbers, "value": value}
    return replace(person, groups=person.groups | {AGE}, numbers=numbers)


def _known(values: Iterable[float]) -> list[float]:
    return [value for value in values if not isnan(value)]


def _means(volumes: Sequence[ScannedVolume]) -> dict[str, dict[str, float]]:
    found: dict[str, dict[str, list[float]]] = {}
    for volume in volumes:
        for name, value in volume.numbers.items():
            found.setdefault(name, {}).setdefault(volume.contrast, []).append(value)
    return {
        name: {contrast: fmean(values) for contrast, values in by.items()}
        for name, by in found.items()
    }


def _kinds(volumes: Sequence[ScannedVolume]) -> dict[str, dict[str, str]]:
    found: dict[str, dict[str, set[str]]] = {}
    for volume in volumes:
        for name, word in volume.kinds.items():
            found.setdefault(name, {}).setdefault(volume.contrast, set()).add(word)
    return {
        name: {
            contrast: words.pop() if len(words) == 1 else MIXED for contrast, words in by.items()
        }
        for name, by in found.items()
    }


def _label_volumes(sessions: Sequence[Session]) -> dict[str, float]:
    """Return the mean volume of each mask in ml, as its files have it."""
    names = {name for session in sessions for name in session.masks if name in session.extents}
    return {
        name: fmean(s.extents[name].outlined for s in sessions if name in s.extents) / _MM3_PER_ML
        for name in names
    }


def _labels(sessions: Sequence[Session]) -> dict[str, frozenset[float]]:
    found: dict[str, set[float]] = {}
    for session in sessions:
        for name in session.masks:
            if name in session.extents:
                found.setdefault(name, set()).update(session.extents[name].labels)
    return {name: frozenset(values) for name, values in found.items()}


def _shares(sessions: Sequence[Session], contrast: str) -> NDArray[np.float64] | None:
    """Return which shares of a person's voxels lie in equal bins from 0 to 1; None of no voxel.

    Voxels count inside of the brain's mask, without one wherever they are above 0.
    """
    total = np.zeros(HISTOGRAM_BINS)
    for session in sessions:
        if contrast in session.contrasts and session.images.size:
            image = session.images[:, session.contrasts.index(contrast)]
            inside = session.masks["brain"] > 0 if "brain" in session.masks else image > 0
            total += np.histogram(image[inside].clip(0, 1), HISTOGRAM_BINS, (0.0, 1.0))[0]
    return total / total.sum() if total.sum() else None
