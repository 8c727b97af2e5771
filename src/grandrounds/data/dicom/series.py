"""Files in any order become series, each one volume; what makes none is refused with a reason."""

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from hashlib import sha256
from itertools import combinations, pairwise
from pathlib import Path
from typing import LiteralString

import numpy as np

from grandrounds.core.sentence import Sentence, phrase
from grandrounds.data.acquisition import Acquisition
from grandrounds.data.dicom.geometry import (
    SAME_PLACE,
    Impossible,
    PlacedFrame,
    VolumeGrid,
    arrange,
    height_of,
    picture_size,
)
from grandrounds.data.dicom.instance import Frame, Instance
from grandrounds.data.measured import SYNTHETIC_WORD

_SECONDARY = "1.2.840.10008.5.1.4.1.1.7."  # captures, of one frame or of several
_SCREENS = {"SCREEN SAVE", "SCREENSHOT", "SCREEN"}
_PROJECTIONS = {"PROJECTION IMAGE", "MIP", "MIN_IP", "MAX_IP", "MNIP"}
_SCOUTS = {"LOCALIZER", "SCOUT"}
_ALIKE = 1e-3  # by which two pictures of one orientation may differ in a direction's component
_PLANES_APART = 20.0  # degrees between two planes, from where on a series is a localizer


@dataclass(frozen=True)
class Series:
    """Pictures that make one volume, in the order of its slices, and where they lie.

    `part` counts the volumes of one series UID from 1, `parts` is how many there are, and `split`
    names what tells them apart.
    """

    pictures: tuple[PlacedFrame, ...]
    grid: VolumeGrid
    part: int = 1
    parts: int = 1
    split: tuple[str, ...] = ()
    remarks: tuple[Sentence, ...] = ()

    @property
    def first(self) -> Instance:
        """Return the file of the first slice: what it says of patient, study and scanner."""
        return self.pictures[0].instance

    @property
    def frame(self) -> Frame:
        """Return the first slice's own facts."""
        return self.pictures[0].frame

    @property
    def instances(self) -> tuple[Instance, ...]:
        """Return the files, each once, in the order in which slices need them."""
        return tuple({each.instance.path: each.instance for each in self.pictures}.values())

    @property
    def identity(self) -> str:
        """Return a digest of which pictures these are, wherever they lie and in whatever order."""
        names = sorted(f"{p.instance.sop_uid}/{p.frame.number}" for p in self.pictures)
        return sha256("\n".join(names).encode()).hexdigest()

    def acquisition(self) -> tuple[Acquisition, tuple[Sentence, ...]]:
        """Return the physics, and a sentence on each value that is not credible."""
        return self.first.settings.to_acquisition(self.frame.echo_time).checked()


@dataclass(frozen=True)
class RefusedSeries:
    """Files of one series UID that make no volume, and why; the reason names nobody."""

    instances: tuple[Instance, ...]
    reason: Sentence


@dataclass(frozen=True)
class FoundSeries:
    """What a set of files holds: each is in a series, in one that is refused, or a duplicate."""

    series: tuple[Series, ...]
    refused: tuple[RefusedSeries, ...]
    duplicates: tuple[Path, ...] = ()


def find_series(instances: Iterable[Instance]) -> FoundSeries:
    """Group files by series and by what splits one, and find where each volume lies."""
    groups: dict[tuple[str, str], list[Instance]] = defaultdict(list)
    for instance in instances:
        groups[instance.study_uid, instance.series_uid].append(instance)
    series: list[Series] = []
    refused: list[RefusedSeries] = []
    duplicates: list[Path] = []
    for key in sorted(groups):
        group = sorted(groups[key], key=lambda each: (each.sop_uid, str(each.path)))
        unique, repeated = _once(group)
        duplicates += repeated
        good, bad = _series_of(unique)
        series += good
        refused += bad
    return FoundSeries(tuple(series), tuple(refused), tuple(duplicates))


def _once(group: Sequence[Instance]) -> tuple[list[Instance], list[Path]]:
    """Return files that differ, and the paths of those that repeat one."""
    unique: list[Instance] = []
    repeated: list[Path] = []
    for instance in group:  # copies follow each other: they have one UID
        if unique and instance.same_as(unique[-1]):
            repeated.append(instance.path)
        else:
            unique.append(instance)
    return unique, repeated


def _series_of(group: Sequence[Instance]) -> tuple[list[Series], list[RefusedSeries]]:
    if reason := _wrong_whole(group):
        return [], [RefusedSeries(tuple(group), reason)]
    fit: list[Instance] = []
    unfit: dict[str, tuple[Sentence, list[Instance]]] = {}
    for instance in group:
        reason = _unmeasured(instance) or _unfit(instance)
        if reason is None:
            fit.append(instance)
        else:
            unfit.setdefault(str(reason), (reason, []))[1].append(instance)
    refused = [RefusedSeries(tuple(each), reason) for reason, each in unfit.values()]
    if not fit:
        return [], refused
    if reason := _scout(fit):
        return [], [*refused, RefusedSeries(tuple(fit), reason)]
    series, more = _volumes(fit)
    return series, [*refused, *more]


def _wrong_whole(group: Sequence[Instance]) -> Sentence | None:
    """Say what is wrong with a series as a whole."""
    patients = {_key_of(each) for each in group}
    if len(patients) > 1:
        return phrase("has pictures of {patients} patients in one series", patients=len(patients))
    if len({each.sop_uid for each in group}) < len(group):
        return phrase("has two different files with one SOP instance UID")
    return None


def _key_of(instance: Instance) -> tuple[str, ...]:
    patient = instance.patient
    by_id = (patient.id.strip(), patient.issuer.strip())
    return by_id if by_id[0] else ("", patient.name.strip().upper(), patient.birth_date)


def _unmeasured(instance: Instance) -> Sentence | None:
    if SYNTHETIC_WORD in instance.image_type:
        return phrase("was made by a network (synthetic), and not measured")
    return None


def _unfit(instance: Instance) -> Sentence | None:
    """Say why a file can be no part of a volume."""
    kinds = set(instance.image_type)
    if f"{instance.sop_class}.".startswith(_SECONDARY) or kinds & _SCREENS:
        return phrase("is a secondary capture, such as a screenshot")
    if instance.samples != 1 or not instance.photometric.startswith("MONOCHROME"):
        return phrase("is a picture in colours")
    if kinds & _PROJECTIONS:
        return phrase("is a projection, and not a slice")
    if instance.bits_allocated == 1:
        return phrase("is a segmentation, and not a picture of grey values")
    frames = instance.frames
    if not frames or any(each.position is None or each.orientation is None for each in frames):
        return phrase("has no position or orientation in space")
    return None


def _scout(group: Sequence[Instance]) -> Sentence | None:
    """Say that a series is a localizer: by its own word, or as its planes cross each other."""
    if any(set(each.image_type) & _SCOUTS for each in group):
        return phrase("is a localizer")
    normals = _unlike([_normal(frame) for each in group for frame in each.frames], _ALIKE)
    cosines = [abs(float(np.dot(a, b))) for a, b in combinations(normals[:50], 2)]
    if cosines and min(cosines) < np.cos(np.radians(_PLANES_APART)):
        return phrase("is a localizer: its {planes} planes cross each other", planes=len(normals))
    return None


def _normal(frame: Frame) -> tuple[float, ...]:
    values = np.array(frame.orientation or (), dtype=np.float64)
    if values.shape != (6,):
        return (0.0, 0.0, 0.0)
    return tuple(map(float, np.cross(values[:3], values[3:])))


def _unlike(found: Iterable[tuple[float, ...]], tolerance: float) -> list[tuple[float, ...]]:
    """Return one of each cluster of vectors."""
    clusters: list[tuple[float, ...]] = []
    for values in dict.fromkeys(found):
        if not any(_near(values, each, tolerance) for each in clusters):
            clusters.append(values)
    return clusters


def _near(one: tuple[float, ...], other: tuple[float, ...], tolerance: float) -> bool:
    return len(one) == len(other) and all(
        abs(a - b) <= tolerance for a, b in zip(one, other, strict=True)
    )


def _volumes(group: Sequence[Instance]) -> tuple[list[Series], list[RefusedSeries]]:
    pictures = [PlacedFrame(each, frame) for each in group for frame in each.frames]
    orientations = _unlike((p.frame.orientation or () for p in pictures), _ALIKE)
    keys = _keys(orientations)
    parts: dict[tuple[object, ...], list[PlacedFrame]] = defaultdict(list)
    for picture in pictures:
        parts[tuple(key(picture) for key in keys.values())].append(picture)
    told_apart = [name for k, name in enumerate(keys) if len({values[k] for values in parts}) > 1]
    series: list[Series] = []
    refused: list[RefusedSeries] = []
    for part in parts.values():
        try:
            series += [_arranged(each, told_apart) for each in _unrepeated(part)]
        except Impossible as found:
            files = {p.instance.path: p.instance for p in part}
            refused.append(RefusedSeries(tuple(files.values()), found.reason))
    return _numbered(series), refused


def _keys(
    orientations: Sequence[tuple[float, ...]],
) -> Mapping[LiteralString, Callable[[PlacedFrame], object]]:
    """Return what splits a series: pictures that differ in one of these are of two volumes."""
    return {
        "size": lambda p: picture_size(p.instance),
        "pixel spacing": lambda p: tuple(round(each, 3) for each in p.frame.spacing or ()),
        "orientation": lambda p: next(
            k for k, o in enumerate(orientations) if _near(p.frame.orientation or (), o, _ALIKE)
        ),
        "image type": lambda p: p.frame.image_type or p.instance.image_type,
        "component": lambda p: p.frame.component,
        "echo time": lambda p: None if p.frame.echo_time is None else round(p.frame.echo_time, 2),
        "diffusion weighting": lambda p: p.frame.b_value,
        "stack": lambda p: p.frame.stack,
        "mosaic": lambda p: p.instance.sop_uid if p.instance.tiles else "",
    }


def _unrepeated(part: Sequence[PlacedFrame]) -> list[list[PlacedFrame]]:
    """Split what lies at one position several times: repetitions are volumes of their own."""
    if not _repeats(part):
        return [list(part)]
    keys: tuple[Callable[[PlacedFrame], object], ...] = (
        lambda p: p.frame.time,
        lambda p: p.instance.acquisition_number,
        lambda p: p.instance.sop_uid if len(p.instance.frames) > 1 else "",
    )
    for key in keys:
        groups = _grouped_by(part, key)
        if len(groups) > 1 and not any(_repeats(each) for each in groups):
            return groups
    return _dealt(part)


def _grouped_by(
    part: Sequence[PlacedFrame], key: Callable[[PlacedFrame], object]
) -> list[list[PlacedFrame]]:
    groups: dict[object, list[PlacedFrame]] = defaultdict(list)
    for picture in part:
        groups[key(picture)].append(picture)
    return list(groups.values())


def _repeats(part: Sequence[PlacedFrame]) -> bool:
    heights = sorted(height_of(each.frame) for each in part)
    return any(b - a < SAME_PLACE for a, b in pairwise(heights))


def _dealt(part: Sequence[PlacedFrame]) -> list[list[PlacedFrame]]:
    """Deal the pictures of each position, in the order of their numbers, to as many volumes."""
    positions = _by_position(part)
    counts = {len(each) for each in positions}
    if len(counts) > 1:
        raise Impossible(
            phrase(
                "of {positions} positions some have {least} pictures and others {most}: volumes "
                "are incomplete",
                positions=len(positions),
                least=min(counts),
                most=max(counts),
            )
        )
    return [list(volume) for volume in zip(*positions, strict=True)]


def _by_position(part: Sequence[PlacedFrame]) -> list[list[PlacedFrame]]:
    ordered = sorted(part, key=lambda p: height_of(p.frame))
    positions: list[list[PlacedFrame]] = []
    last = -np.inf
    for picture in ordered:
        height = height_of(picture.frame)
        if height - last >= SAME_PLACE:
            positions.append([])
            last = height
        positions[-1].append(picture)
    return [sorted(each, key=_taken) for each in positions]


def _taken(picture: PlacedFrame) -> tuple[float, str, int]:
    number = picture.instance.instance_number
    return (
        float("inf") if number is None else number,
        picture.instance.sop_uid,
        picture.frame.number,
    )


def _arranged(pictures: Sequence[PlacedFrame], told_apart: Sequence[str]) -> Series:
    ordered, grid = arrange(pictures)
    return Series(ordered, grid, split=tuple(told_apart), remarks=grid.remarks + _derived(ordered))


def _derived(pictures: Sequence[PlacedFrame]) -> tuple[Sentence, ...]:
    if pictures[0].instance.image_type[:1] != ("DERIVED",):
        return ()
    return (phrase("derived from other pictures, by its image type"),)


def _numbered(series: Sequence[Series]) -> list[Series]:
    ordered = sorted(series, key=lambda each: _taken(each.pictures[0]))
    return [replace(each, part=k, parts=len(ordered)) for k, each in enumerate(ordered, start=1)]
