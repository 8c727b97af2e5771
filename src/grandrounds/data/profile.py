"""What a site's training images look like, in quantiles over its patients; it stays at the site.

A volume that is unlike them lies outside what the site's model has seen.
"""

import json
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TypeAlias, cast

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage  # pyright: ignore[reportMissingTypeStubs]

from grandrounds.core.errors import BadFolder
from grandrounds.core.files import write_bytes
from grandrounds.core.serialization import from_plain
from grandrounds.data.cohort import Cohort, Session
from grandrounds.data.prepare import KEPT_AREA, head_of

PROFILE_FLOOR = 5  # of a contrast: below, a quantile would be of one person
PROFILE_VERSION = 1
MOST_PATIENTS, MOST_SLICES = 256, 24  # that are looked at
PERCENTS = tuple(range(5, 100, 5))  # of brightness in the head
RINGS = 8  # parts of the head, equal in size, from its surface inwards
# How far beyond the site's own patients an input may lie; benchmarks/refusals.py measures them.
LOOK_FACTOR, LEAST_LOOK = 1.5, 0.03
AREA_FACTOR = 1.5
SPACING_FACTOR = 2.0
MUCH_NEARER = 0.5  # of the distance to its own contrast is that to another one

LookCurve: TypeAlias = tuple[float, ...]


@dataclass(frozen=True)
class ImageLook:
    """What an image of one contrast looks like once it is prepared.

    `brightness` has the percentiles of the head's grey values, `rings` their means from the head's
    surface inwards, `area` the head's largest cross-section in cm2.
    """

    brightness: LookCurve
    rings: LookCurve
    area: float

    def distance(self, other: "ImageLook") -> float:
        """Return the mean difference of percentiles and of rings, on the scale of grey values."""
        pairs = ((self.brightness, other.brightness), (self.rings, other.rings))
        return float(np.mean([np.abs(np.subtract(a, b)).mean() for a, b in pairs]))


@dataclass(frozen=True)
class ContrastProfile:
    """A contrast at one site: its median look, and ranges (5 to 95 %) over `patients` patients.

    `spread` is the distance of a patient's look from that of the others (95 %), `area` in cm2,
    `planes` and `slices` the distance in mm between pixels and between slices; empty: unknown.
    """

    patients: int
    look: ImageLook
    spread: float
    area: tuple[float, ...]
    planes: tuple[float, ...] = ()
    slices: tuple[float, ...] = ()

    @property
    def allowed(self) -> float:
        """Return the largest distance from the median look at which an image counts as alike.

        It is wider where few patients tell how far apart they are.
        """
        return max(LOOK_FACTOR * (1 + 2 / self.patients) * self.spread, LEAST_LOOK)


@dataclass(frozen=True)
class DataProfile:
    """The contrasts that a site's model was trained with; one of too few patients is left out."""

    contrasts: Mapping[str, ContrastProfile] = field(default_factory=dict[str, ContrastProfile])

    def objections(
        self, contrast: str, look: ImageLook, spacing: Sequence[float] = ()
    ) -> tuple[str, ...]:
        """Say in what an input is unlike what was seen: found, seen, and what would be right.

        `spacing` is the input's own in mm: slice, row and column. Empty where nothing is unlike.
        """
        seen = self.contrasts[contrast]
        found = (*_spacing_objections(seen, spacing), *_area_objections(seen, look))
        return (*found, *self._look_objections(contrast, look))

    def _look_objections(self, contrast: str, look: ImageLook) -> tuple[str, ...]:
        seen = self.contrasts[contrast]
        distance = look.distance(seen.look)
        others = {n: look.distance(c.look) for n, c in self.contrasts.items() if n != contrast}
        nearest = min(others, key=lambda name: others[name], default="")
        named = bool(nearest) and others[nearest] < MUCH_NEARER * distance
        if distance <= seen.allowed and not (named and distance > seen.spread):
            return ()
        hint = (
            f"it looks like the site's {nearest} ({others[nearest]:.3f} away)"
            if named
            else f"a {contrast} of the site's scanner, prepared as the training data were, would be"
        )
        return (
            f"its grey values are {distance:.3f} away from the site's {contrast}, whose own "
            f"patients are up to {seen.spread:.3f} away and {seen.allowed:.3f} would be right; "
            f"{hint}",
        )


def _spacing_objections(seen: ContrastProfile, spacing: Sequence[float]) -> tuple[str, ...]:
    if not spacing:
        return ()
    between, pixels = spacing[0], max(spacing[1:])
    found = list[str]()
    if seen.slices and not (
        seen.slices[0] / SPACING_FACTOR <= between <= seen.slices[-1] * SPACING_FACTOR
    ):
        found.append(
            f"its slices are {between:.3g} mm apart, and those that the model has seen "
            f"{_range(seen.slices)} mm; from {seen.slices[0] / SPACING_FACTOR:.3g} to "
            f"{seen.slices[-1] * SPACING_FACTOR:.3g} mm would be right"
        )
    if seen.planes and pixels > seen.planes[-1] * SPACING_FACTOR:
        found.append(
            f"its pixels are {pixels:.3g} mm long, and those that the model has seen "
            f"{_range(seen.planes)} mm; up to {seen.planes[-1] * SPACING_FACTOR:.3g} mm would be "
            "right"
        )
    return tuple(found)


def _area_objections(seen: ContrastProfile, look: ImageLook) -> tuple[str, ...]:
    low, high = seen.area[0] / AREA_FACTOR, seen.area[-1] * AREA_FACTOR
    if low <= look.area <= high:
        return ()
    return (
        f"the largest cross-section that it shows has {look.area:.0f} cm2, and those that the "
        f"model has seen {_range(seen.area)} cm2; from {low:.0f} to {high:.0f} cm2 would be right",
    )


def _range(values: Sequence[float]) -> str:
    low, high = f"{values[0]:.3g}", f"{values[-1]:.3g}"
    return low if low == high else f"{low} to {high}"


def look_of(volume: NDArray[np.float32], pixel: tuple[float, float]) -> ImageLook | None:
    """Return the look of a prepared volume, (slice, row, column) in [0, 1]; None if it is empty.

    Slices with a quarter or more of the largest cross-section count, as in training.
    """
    inside = head_of(volume)
    sizes = inside.sum(axis=(1, 2))
    if not sizes.any():
        return None
    large = np.flatnonzero(sizes >= KEPT_AREA * sizes.max())
    step = -(-len(large) // MOST_SLICES)
    chosen = np.asarray(volume[large[::step]])
    filled = np.stack([_filled(plane) for plane in head_of(chosen)])
    depths = np.stack([_depths(plane, pixel) for plane in filled])[filled]
    values = chosen[filled]
    inwards = values[np.argsort(depths, kind="stable")]
    area = float(filled.sum(axis=(1, 2)).max()) * pixel[0] * pixel[1] / 100
    return ImageLook(
        _rounded(np.percentile(values, PERCENTS)),
        _rounded([part.mean() for part in np.array_split(inwards, RINGS)]),
        round(area, 1),
    )


def _filled(plane: NDArray[np.bool_]) -> NDArray[np.bool_]:
    fill = cast(Callable[..., NDArray[np.bool_]], ndimage.binary_fill_holes)  # pyright: ignore[reportUnknownMemberType]
    return fill(plane)


def _depths(plane: NDArray[np.bool_], pixel: tuple[float, float]) -> NDArray[np.float64]:
    measure = cast(Callable[..., NDArray[np.float64]], ndimage.distance_transform_edt)  # pyright: ignore[reportUnknownMemberType]
    return measure(plane, sampling=pixel)


def _rounded(values: Iterable[float] | NDArray[np.float64]) -> LookCurve:
    return tuple(round(float(value), 4) for value in values)


@dataclass(frozen=True)
class _Seen:
    """A patient's look in one contrast, and the spacing before preparation where it is known."""

    look: ImageLook
    spacing: tuple[float, ...]


def make_profile(cohorts: Sequence[Cohort], pixel: tuple[float, float]) -> DataProfile:
    """Profile the training patients of a site; `pixel` is the size of prepared pixels in mm."""
    by_contrast: dict[str, dict[str, list[_Seen]]] = defaultdict(dict)
    for site, session in _training_sessions(cohorts):
        for place, contrast in enumerate(session.contrasts):
            if look := look_of(session.images[:, place], pixel):
                who = f"{site}/{session.patient}"
                by_contrast[contrast].setdefault(who, []).append(_Seen(look, session.spacing))
    return DataProfile(
        {
            contrast: _profiled([_mean_seen(each) for _, each in sorted(patients.items())])
            for contrast, patients in sorted(by_contrast.items())
            if len(patients) >= PROFILE_FLOOR
        }
    )


def has_images(cohorts: Sequence[Cohort]) -> bool:
    """Tell whether any training session has images of named contrasts."""
    sessions = (session for cohort in cohorts for session in cohort.splits["train"])
    return any(session.contrasts and session.images.size for session in sessions)


def _training_sessions(cohorts: Sequence[Cohort]) -> list[tuple[str, Session]]:
    patients = [
        (cohort.site, patient) for cohort in cohorts for patient in cohort.patients("train")
    ]
    looked_at = set(patients[:: -(-len(patients) // MOST_PATIENTS)] if patients else ())
    return [
        (cohort.site, session)
        for cohort in cohorts
        for session in cohort.splits["train"]
        if (cohort.site, session.patient) in looked_at and session.images.size
    ]


def _mean_seen(sessions: Sequence[_Seen]) -> _Seen:
    known = [each.spacing for each in sessions if each.spacing]
    spacing = tuple(float(length) for length in np.mean(known, axis=0)) if known else ()
    return _Seen(_joined([each.look for each in sessions], np.mean), spacing)


def _profiled(patients: Sequence[_Seen]) -> ContrastProfile:
    looks = [each.look for each in patients]
    apart = [
        look.distance(_joined([*looks[:place], *looks[place + 1 :]], np.median))
        for place, look in enumerate(looks)
    ]
    known = [each.spacing for each in patients if each.spacing]
    return ContrastProfile(
        len(looks),
        _joined(looks, np.median),
        round(float(np.quantile(apart, 0.95)), 4),
        _middle([look.area for look in looks]),
        _middle([max(spacing[1:]) for spacing in known]),
        _middle([spacing[0] for spacing in known]),
    )


def _joined(looks: Sequence[ImageLook], by: Callable[..., NDArray[np.float64]]) -> ImageLook:
    return ImageLook(
        _rounded(by([look.brightness for look in looks], axis=0)),
        _rounded(by([look.rings for look in looks], axis=0)),
        round(float(by([look.area for look in looks], axis=0)), 1),
    )


def _middle(values: Sequence[float]) -> LookCurve:
    """Return the 5 and 95 % quantiles; nothing of too few patients."""
    return _rounded(np.quantile(values, (0.05, 0.95))) if len(values) >= PROFILE_FLOOR else ()


def save_profile(path: Path, profile: DataProfile) -> None:
    """Write a profile that its owner alone can read. Raises `DiskFailed`."""
    content = {"version": PROFILE_VERSION, **asdict(profile)}
    write_bytes(path, json.dumps(content, indent=1).encode(), private=True)


def read_profile(path: Path) -> DataProfile | None:
    """Read a profile; None where there is none, or of another version. Raises `BadFolder`."""
    if not path.exists():
        return None
    try:
        content = json.loads(path.read_text("utf-8"))
        if content.pop("version") != PROFILE_VERSION:
            return None
        profile = from_plain(DataProfile, content)
        whole = all(_is_whole(each) for each in profile.contrasts.values())
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError):
        whole, profile = False, None
    if not whole:
        raise BadFolder(f"{path}: is no profile of training data; put it back from a copy")
    return profile


def _is_whole(each: ContrastProfile) -> bool:
    curves = (each.look.brightness, each.look.rings, each.area, each.planes, each.slices)
    numbers = np.concatenate([(each.spread, each.look.area), *curves])
    lengths = tuple(len(curve) for curve in curves)
    right = lengths[:3] == (len(PERCENTS), RINGS, 2) and set(lengths[3:]) <= {0, 2}
    return right and bool(np.isfinite(numbers).all())
