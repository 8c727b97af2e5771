"""A site's files become training slices: prepared once, cached on disk, read as memory maps."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from grandrounds.core.errors import BadImage, BadSite
from grandrounds.core.sentence import Name, Reason, phrase
from grandrounds.data.cohort import (
    HEADROOM,
    SPLITS,
    Cohort,
    Extent,
    Session,
    SplitName,
    split_patients,
)
from grandrounds.data.elements import Elements
from grandrounds.data.masks import HALF, Mask, read_mask
from grandrounds.data.measured import check_measured
from grandrounds.data.nifti import Grid, read_grid, read_voxels
from grandrounds.data.resample import Pixels, Resampler, Voxels, in_plane, nearest, smooth
from grandrounds.data.session_cache import cache_key, cached_session, file_digest
from grandrounds.data.session_files import NoSession, SessionFiles, find_sessions

# Part of every cache key: raise it where prepared voxels, refusals or extents would change.
PREPARATION_VERSION = 3
GRID_TOLERANCE = 0.1  # mm between the corners of two volumes that count as one grid
KEPT_AREA = 0.25  # a slice is kept from this share of the largest slice's area on ...
COVERED = 0.9  # ... if every contrast has a signal in this share of its own area
NO_AIR = -500.0  # HU: air has -1000, and nothing in a head but air is below this
AIR_TO_TISSUE = 700.0  # HU, less than there are between air and any soft tissue
AIR = 0.1  # share of the robust intensity range below which a voxel is background
BELOW_IN_BRAIN = 0.05  # share of the brain's voxels that may be below 0
BELOW_IN_ALL = 0.02  # share of all voxels that may be far below 0, where no mask shows the brain
WHOLE_HEAD = "head"  # in place of the brain where there is no mask of it


def _nobody_told(done: int, total: int) -> None:
    """Tell nobody how many sessions are prepared."""


def prepare_cohort(
    site: str,
    folder: Path,
    elements: Elements,
    *,
    cache: Path,
    prepared: Callable[[int, int], None] = _nobody_told,
) -> Cohort:
    """Prepare each session of a site's folder, or take it from `cache`, and split by patient.

    `prepared` is told how many of how many sessions are ready.
    A session has those of the study's contrasts that its files have; one with none is left out.
    The arrays are read-only memory maps. Raises `BadSite` and `BadImage`.
    """
    found = find_sessions(folder)
    _check_spelling(folder, found, elements)
    files = [session for session in found if used_contrasts(session, elements)]
    if not files:
        raise NoSession(
            f"{folder}: no session has any of the study's contrasts "
            f"({', '.join(elements.contrasts)}); the names must spell them exactly so.",
            safe=phrase(
                "no session has any of the study's contrasts ({contrasts})",
                contrasts=tuple(Name(contrast) for contrast in elements.contrasts),
            ),
        )
    split_of = split_patients((session.patient for session in files), elements.split, site=site)
    splits: dict[SplitName, list[Session]] = {split: [] for split in SPLITS}
    for done, session in enumerate(files):
        prepared(done, len(files))
        splits[split_of[session.patient]].append(_cached_files(session, elements, cache))
    prepared(len(files), len(files))
    return Cohort(site, {split: tuple(sessions) for split, sessions in splits.items()})


def _check_spelling(folder: Path, found: Sequence[SessionFiles], elements: Elements) -> None:
    """Refuse contrasts that differ from the study's in case alone: they would be left out."""
    known = {contrast.lower(): contrast for contrast in elements.contrasts}
    for session in found:
        for name, path in session.contrasts.items():
            if name not in elements.contrasts and (meant := known.get(name.lower())):
                raise BadSite(
                    f"{folder}: {path.name}: the study spells this contrast {meant}; a name must "
                    "be spelled exactly so.",
                    safe=phrase(
                        "a volume's contrast differs from {name} in case", name=Name(meant)
                    ),
                )


def used_contrasts(files: SessionFiles, elements: Elements) -> tuple[str, ...]:
    """Return the study's contrasts that a session has, in the study's order."""
    return tuple(contrast for contrast in elements.contrasts if contrast in files.contrasts)


def prepare_session(files: SessionFiles, elements: Elements) -> Session:
    """Read one session and bring it to the study's slice size, spacing and intensities.

    Slices keep their thickness and run from the feet up; anterior is up and the patient's left is
    on the right side of the picture. Each is resampled in its plane about the volume's centre, and
    cropped or padded with 0. Each volume is divided by 1.2 times its 99th percentile inside the
    brain mask (without one: inside the head) and clipped to [0, 1]; a contrast with a window in
    elements.intensity is scaled by that. A slice stays if the brain (the head) that every contrast
    shows is a quarter of the largest one and nine tenths of its own. A mask of which nothing is
    left is left out: the structure is there, but cannot be seen.
    """
    made = _prepare(files, elements)
    paths = [files.contrasts[contrast] for contrast in used_contrasts(files, elements)]
    selected = _select_slices(made, paths)
    masks = {name: mask[selected] for name, mask in made.masks.items()}
    kept = masks | {WHOLE_HEAD: made.inside[selected]}
    extents = {name: made.extent(name, kept[name]) for name in made.sources}
    return Session(
        files.patient,
        files.session,
        used_contrasts(files, elements),
        made.images[selected],
        {name: mask for name, mask in masks.items() if not extents[name].lost},
        heights=tuple(float(n) * made.frame.thickness for n in np.flatnonzero(selected)),
        extents=extents,
        spacing=made.frame.spacing,
    )


@dataclass(frozen=True)
class PreparedVolumes:
    """Every slice of a session's volumes, (slice, contrast, height, width) in [0, 1].

    `spacing` is that of slices, rows and columns before preparation, in mm; `outside` the share of
    the brain, or without a mask of the head, that lies outside the study's window.
    """

    images: NDArray[np.float32]
    spacing: tuple[float, float, float]
    outside: float


def prepare_volumes(files: SessionFiles, elements: Elements) -> PreparedVolumes:
    """Prepare a session's volumes as `prepare_session` does, but with every slice.

    Raises `BadImage`.
    """
    made = _prepare(files, elements)
    shown = made.sources.get("brain") or made.sources[WHOLE_HEAD]
    whole = int(np.count_nonzero(shown.voxels))
    outside = 1 - made.frame.shown(shown.voxels) / whole if whole else 0.0
    return PreparedVolumes(made.images, made.frame.spacing, outside)


def _cached_files(files: SessionFiles, elements: Elements, cache: Path) -> Session:
    used = {contrast: files.contrasts[contrast] for contrast in used_contrasts(files, elements)}
    windows = sorted((name, tuple(w)) for name, w in _windows(elements).items() if name in used)
    settings = (
        str(PREPARATION_VERSION),
        repr(elements.size),
        repr(elements.spacing),
        repr(windows),
    )
    check_measured(used.values())
    content = (
        f"{name}={_source_digest(path)}" for name, path in (used | dict(files.masks)).items()
    )
    key = cache_key("files", *settings, files.patient, files.session, *content)
    return cached_session(cache, key, lambda: prepare_session(files, elements))


def _windows(elements: Elements) -> Mapping[str, tuple[float, float]]:
    return elements.intensity or {}


@dataclass(frozen=True)
class _Frame:
    """How rows and columns are resampled, and the distance between slices in mm."""

    rows: Pixels
    columns: Pixels
    thickness: float

    @property
    def spacing(self) -> tuple[float, float, float]:
        return self.thickness, self.rows.spacing, self.columns.spacing

    @property
    def voxel(self) -> float:
        """Return the volume of an old voxel, mm3."""
        return self.rows.spacing * self.columns.spacing * self.thickness

    @property
    def new_voxel(self) -> float:
        return self.rows.wanted * self.columns.wanted * self.thickness

    def resampled(self, values: Voxels, by: Resampler) -> Voxels:
        return in_plane(values, self.rows, self.columns, by=by)

    def shown(self, voxels: NDArray[np.bool_]) -> int:
        """Count the marked voxels, of the old ones, whose middle lies in the study's window."""
        rows, columns = (
            pixels.within(length)
            for pixels, length in zip((self.rows, self.columns), voxels.shape[1:], strict=True)
        )
        return int(np.count_nonzero(voxels[:, rows][:, :, columns]))


@dataclass(frozen=True)
class _Prepared:
    """All slices of a session, where any contrast shows the brain (the head), and the masks.

    `signal` is where every contrast has one; `sources` are the masks in their files' own voxels,
    and the "head" where there is no mask of the brain.
    """

    frame: _Frame
    images: NDArray[np.float32]
    inside: NDArray[np.bool_]
    signal: NDArray[np.bool_]
    masks: Mapping[str, NDArray[np.uint8]]
    sources: Mapping[str, Mask]

    def extent(self, name: str, kept: NDArray[np.uint8] | NDArray[np.bool_]) -> Extent:
        """Return how much of a structure there was, is in the window, and is kept."""
        source = self.sources[name]
        outlined = int(np.count_nonzero(source.voxels)) * self.frame.voxel
        shown = self.frame.shown(source.voxels) * self.frame.voxel
        left = int(kept.sum()) * self.frame.new_voxel
        brain = self.sources.get("brain", source).voxels
        outside = int(np.count_nonzero(source.voxels & ~brain)) * self.frame.voxel
        return Extent(outlined, shown, left, source.labels, source.soft, outside)


def _prepare(files: SessionFiles, elements: Elements) -> _Prepared:
    check_measured(files.contrasts.values())
    frame = _common_frame(files, elements)
    used = {contrast: files.contrasts[contrast] for contrast in used_contrasts(files, elements)}
    sources = {name: read_mask(path) for name, path in files.masks.items()}
    if "brain" in sources and not sources["brain"].voxels.any():
        raise BadImage(
            f"{files.masks['brain']}: marks no voxel; the mask of a brain must show one.",
            safe=phrase("the mask of a brain marks no voxel"),
        )
    masks = {name: _resampled(mask, frame) for name, mask in sources.items()}
    brain = masks["brain"] > 0 if "brain" in masks else None
    parts: list[tuple[NDArray[np.float32], NDArray[np.bool_], NDArray[np.bool_]]] = []
    for contrast, path in used.items():
        window = _windows(elements).get(contrast)
        voxels = _voxels(path, window)
        if window is None:
            _check_positive(voxels, sources.get("brain"), path)
        if "brain" not in sources and WHOLE_HEAD not in sources:
            sources[WHOLE_HEAD] = Mask(head_of(voxels))
        volume = frame.resampled(voxels, smooth)
        inside = head_of(volume) if brain is None else brain
        image = volume.clip(0, 1) if window else _normalise(volume, inside, path)
        parts.append((image, inside, np.full_like(inside, True) if window else image > 0))
    images, inside, signal = zip(*parts, strict=True)
    return _Prepared(
        frame,
        np.stack(images, axis=1),
        np.any(inside, axis=0),
        np.all(signal, axis=0),
        masks,
        sources,
    )


def _source_digest(path: Path) -> str:
    try:
        return file_digest(path)
    except OSError as error:
        raise BadImage(
            f"{path}: {error.strerror}; the file must be readable.",
            safe=phrase("a volume cannot be read ({why})", why=Reason.of(error)),
        ) from None


def _common_frame(files: SessionFiles, elements: Elements) -> _Frame:
    """Return how rows and columns, equal in a session's volumes, are resampled to the study's."""
    used = [files.contrasts[contrast] for contrast in used_contrasts(files, elements)]
    first, *others = [*used, *files.masks.values()]
    grid = read_grid(first)
    for path in others:
        if difference := _difference(read_grid(path), grid):
            raise BadImage(
                f"{path}: is not on the grid of {first.name} ({difference}); the contrasts and "
                "masks of a session must share one grid, so resample them onto one.",
                safe=phrase("the volumes of a session do not share one grid"),
            )
    rows, columns = zip(grid.spacing[1:], elements.size, elements.spacing, strict=True)
    return _Frame(Pixels(*rows), Pixels(*columns), grid.spacing[0])


def _difference(grid: Grid, reference: Grid) -> str:
    if grid.shape != reference.shape:
        actual, expected = (" x ".join(map(str, shape)) for shape in (grid.shape, reference.shape))
        return f"{actual} voxels instead of {expected}"
    distance = grid.distance(reference)
    return f"{distance:.1f} mm apart" if distance > GRID_TOLERANCE else ""


def _voxels(path: Path, window: tuple[float, float] | None) -> NDArray[np.float32]:
    """Read a volume's grey values; with a window, those from its low to its high end, 0 to 1."""
    voxels = read_voxels(path)
    if voxels.min() == voxels.max():
        raise BadImage(
            f"{path}: every voxel is {voxels.min():g}; an image must show something.",
            safe=phrase("all voxels of a volume are equal"),
        )
    if window is None:
        return voxels
    low, high = window
    windowed = ((voxels - low) / (high - low)).clip(0, 1).astype(np.float32)
    if not np.percentile(windowed, 99) > AIR or windowed.min() == 1:
        raise BadImage(
            f"{path}: almost nothing of its values, from {voxels.min():g} to {voxels.max():g}, "
            f"lies in the window of elements.intensity, {low:g} to {high:g}; are they in its "
            "unit?",
            safe=phrase("a volume's values lie outside of the window of elements.intensity"),
        )
    _check_offset(voxels, window, path)
    return windowed


def _check_offset(voxels: NDArray[np.float32], window: tuple[float, float], path: Path) -> None:
    """Refuse CT without its offset: air is stored near 0, and tissue lies far above the window."""
    (low, high), lowest = window, float(voxels.min())
    tissue = float(np.median(voxels[head_of(voxels)]))
    far = tissue - float(np.percentile(voxels, 2)) > AIR_TO_TISSUE
    if lowest > NO_AIR and (tissue > high or (low < NO_AIR and far)):
        raise BadImage(
            f"{path}: half of what it shows is above {tissue:g} and nothing below {lowest:g}, so "
            f"the window of elements.intensity, {low:g} to {high:g}, would cut wrongly. If this is "
            "CT, its offset was lost: air is -1000 HU, so subtract what the series calls its "
            "rescale intercept, most often 1024.",
            safe=phrase(
                "a volume has nothing near -1000 HU, where air is, and much above the window of "
                "elements.intensity: an offset was lost"
            ),
        )


def _check_positive(voxels: NDArray[np.float32], brain: Mask | None, path: Path) -> None:
    """Refuse a volume much of whose brain would become 0, because its values are below that."""
    if brain is None:
        low, high = np.percentile(voxels, [2, 98])
        below, total = int(np.count_nonzero(voxels < -AIR * (high - low))), voxels.size
        where, most = "are far below 0", BELOW_IN_ALL
    else:
        same = brain.voxels.shape == voxels.shape
        assert same, "the grids were compared before"
        below = int(np.count_nonzero(voxels[brain.voxels] < 0))
        total = int(np.count_nonzero(brain.voxels))
        where, most = "in the brain are below 0", BELOW_IN_BRAIN
    if below > most * total:
        raise BadImage(
            f"{path}: {below} of {total} voxels {where}, which would all become 0 (integers that "
            "wrapped around, a z-score, or CT?); give values from 0 on, or let the study choose a "
            "window, as for CT: elements.intensity = { CONTRAST = [LOW, HIGH] }.",
            safe=phrase(
                "{below} of {total} voxels of a volume " + where + ", which would all become 0; "
                "values must be from 0 on, or elements.intensity choose a window",
                below=below,
                total=total,
            ),
        )


def _resampled(mask: Mask, frame: _Frame) -> NDArray[np.uint8]:
    return (frame.resampled(mask.voxels.astype(np.float32), nearest) > HALF).astype(np.uint8)


def head_of(volume: NDArray[np.float32]) -> NDArray[np.bool_]:
    """Return where the head is, by a threshold within the robust range (Smith 2002, BET)."""
    low, high = np.percentile(volume, [2, 98])
    return volume > low + AIR * (high - low)


def _normalise(
    volume: NDArray[np.float32], inside: NDArray[np.bool_], path: Path
) -> NDArray[np.float32]:
    top = float(np.percentile(volume[inside], 99)) if inside.any() else 0.0
    if top <= 0:
        raise BadImage(
            f"{path}: no grey value above 0 lies in the brain at the middle of the volume; "
            "a volume, and its brain mask, must be centred on the brain.",
            safe=phrase("a volume, or its brain mask, is not centred on the brain"),
        )
    return np.clip(volume / (HEADROOM * top), 0, 1).astype(np.float32)


def _select_slices(made: _Prepared, paths: Sequence[Path]) -> NDArray[np.bool_]:
    seen = (made.inside & made.signal).sum(axis=(1, 2))
    inside = made.inside.sum(axis=(1, 2))
    whole = (seen > 0) & (seen >= COVERED * inside)
    selected = whole & (seen >= KEPT_AREA * seen.max())
    if not selected.any():
        names = ", ".join(path.name for path in paths)
        reaches = "brain" in made.sources and made.inside.any()
        beside = ", and its brain mask lie where none of them is 0" if reaches else ""
        raise BadImage(
            f"{paths[0].parent}: no slice shows the brain in all of {names}; "
            f"the contrasts of a session must show the same part of the body{beside}.",
            safe=phrase("the contrasts of a session do not show the same part of the body"),
        )
    return selected
