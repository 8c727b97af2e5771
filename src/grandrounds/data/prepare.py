"""A site's files become training slices: prepared once, cached on disk, read as memory maps."""

import hashlib
import json
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from grandrounds.core.errors import BadFolder, BadImage, BadSite
from grandrounds.core.sentence import Name, Reason, phrase
from grandrounds.data.cohort import HEADROOM, SPLITS, Cohort, Session, SplitName, split_patients
from grandrounds.data.elements import Elements
from grandrounds.data.nifti import Grid, SessionFiles, find_sessions, read_grid, read_voxels
from grandrounds.data.resample import Pixels, in_plane, nearest, smooth

PREPARATION_VERSION = 1  # part of every cache key: raise it whenever prepared voxels would change
GRID_TOLERANCE = 0.1  # mm between the corners of two volumes that count as one grid
KEPT_AREA = 0.25  # a slice is kept from this share of the largest slice's area on ...
COVERED = 0.9  # ... if every contrast has a signal in this share of its own area
DESCRIPTION = "session.json"
AIR = 0.1  # share of the robust intensity range below which a voxel is background


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
    files = [session for session in find_sessions(folder) if used_contrasts(session, elements)]
    if not files:
        raise BadSite(
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


def used_contrasts(files: SessionFiles, elements: Elements) -> tuple[str, ...]:
    """Return the study's contrasts that a session has, in the study's order."""
    return tuple(contrast for contrast in elements.contrasts if contrast in files.contrasts)


def prepare_session(files: SessionFiles, elements: Elements) -> Session:
    """Read one session and bring it to the study's slice size, spacing and intensities.

    Slices keep their thickness and run from the feet up; anterior is up and the patient's left is
    on the right side of the picture. Each is resampled in its plane about the volume's centre, and
    cropped or padded with 0. Each volume is divided by 1.2 times its 99th percentile inside the
    brain mask (without one: inside the head) and clipped to [0, 1]. A slice stays if the brain
    (the head) that every contrast shows is a quarter of the largest one and nine tenths of its own.
    """
    images, inside, masks = _prepare(files, elements)
    paths = [files.contrasts[contrast] for contrast in used_contrasts(files, elements)]
    selected = _select_slices(images, inside, paths)
    return Session(
        files.patient,
        files.session,
        used_contrasts(files, elements),
        images[selected],
        {name: mask[selected] for name, mask in masks.items()},
    )


def prepare_volumes(files: SessionFiles, elements: Elements) -> NDArray[np.float32]:
    """Prepare a session's volumes as `prepare_session` does, but with every slice.

    Returns (slice, contrast, height, width) in [0, 1]. Raises `BadImage`.
    """
    return _prepare(files, elements)[0]


def cached_session(cache: Path, key: str, make: Callable[[], Session]) -> Session:
    """Return the session stored under `key` as read-only memory maps.

    A missing or damaged entry is made first. Raises `BadFolder` where `cache` cannot be written.
    """
    folder = cache / key
    entry = _intact(folder) or _store(make(), folder)
    arrays = {name: np.load(folder / f"{name}.npy", mmap_mode="r") for name in entry.digests}
    images = arrays.pop("images")
    known = cache_key(*sorted(f"{name}={digest}" for name, digest in entry.digests.items()))
    contrasts = tuple(entry.contrasts)
    return Session(entry.patient, entry.session, contrasts, images, arrays, digest=known)


def cache_key(*parts: str) -> str:
    """Return the SHA-256 of all that a cached session depends on."""
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def _cached_files(files: SessionFiles, elements: Elements, cache: Path) -> Session:
    used = {contrast: files.contrasts[contrast] for contrast in used_contrasts(files, elements)}
    settings = (str(PREPARATION_VERSION), repr(elements.size), repr(elements.spacing))
    content = (
        f"{name}={_source_digest(path)}" for name, path in (used | dict(files.masks)).items()
    )
    key = cache_key("files", *settings, files.patient, files.session, *content)
    return cached_session(cache, key, lambda: prepare_session(files, elements))


def _prepare(
    files: SessionFiles, elements: Elements
) -> tuple[NDArray[np.float32], NDArray[np.bool_], Mapping[str, NDArray[np.uint8]]]:
    """Return all slices, where any contrast shows the brain (the head), and the masks."""
    pixels = _common_pixels(files, elements)
    paths = [files.contrasts[contrast] for contrast in used_contrasts(files, elements)]
    masks = {name: _mask(path, pixels) for name, path in files.masks.items()}
    volumes = [_volume(path, pixels) for path in paths]
    inside = [masks["brain"] > 0 if "brain" in masks else _head(volume) for volume in volumes]
    parts = zip(volumes, inside, paths, strict=True)
    images = np.stack([_normalise(*part) for part in parts], axis=1)
    return images, np.any(inside, axis=0), masks


def _source_digest(path: Path) -> str:
    try:
        return _digest(path)
    except OSError as error:
        raise BadImage(
            f"{path}: {error.strerror}; the file must be readable.",
            safe=phrase("a volume cannot be read ({why})", why=Reason.of(error)),
        ) from None


def _digest(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _common_pixels(files: SessionFiles, elements: Elements) -> tuple[Pixels, Pixels]:
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
    return Pixels(*rows), Pixels(*columns)


def _difference(grid: Grid, reference: Grid) -> str:
    if grid.shape != reference.shape:
        actual, expected = (" x ".join(map(str, shape)) for shape in (grid.shape, reference.shape))
        return f"{actual} voxels instead of {expected}"
    distance = grid.distance(reference)
    return f"{distance:.1f} mm apart" if distance > GRID_TOLERANCE else ""


def _volume(path: Path, pixels: tuple[Pixels, Pixels]) -> NDArray[np.float32]:
    voxels = read_voxels(path)
    if voxels.min() == voxels.max():
        raise BadImage(
            f"{path}: every voxel is {voxels.min():g}; an image must show something.",
            safe=phrase("all voxels of a volume are equal"),
        )
    return in_plane(voxels, *pixels, by=smooth)


def _mask(path: Path, pixels: tuple[Pixels, Pixels]) -> NDArray[np.uint8]:
    return (in_plane(read_voxels(path), *pixels, by=nearest) > 0.5).astype(np.uint8)


def _head(volume: NDArray[np.float32]) -> NDArray[np.bool_]:
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


def _select_slices(
    images: NDArray[np.float32], inside: NDArray[np.bool_], paths: Sequence[Path]
) -> NDArray[np.bool_]:
    seen = (inside & (images > 0).all(axis=1)).sum(axis=(1, 2))
    whole = (seen > 0) & (seen >= COVERED * inside.sum(axis=(1, 2)))
    selected = whole & (seen >= KEPT_AREA * seen.max())
    if not selected.any():
        names = ", ".join(path.name for path in paths)
        raise BadImage(
            f"{paths[0].parent}: no slice shows the brain in all of {names}; "
            "the contrasts of a session must show the same part of the body.",
            safe=phrase("the contrasts of a session do not show the same part of the body"),
        )
    return selected


@dataclass(frozen=True)
class _Entry:
    """A cache entry's description; `digests` maps an array's name to its file's SHA-256."""

    patient: str
    session: str
    contrasts: tuple[str, ...]
    digests: Mapping[str, str]


def _intact(folder: Path) -> _Entry | None:
    """Read a cache entry's description, or return None where the entry is missing or damaged."""
    try:
        entry = _Entry(**json.loads((folder / DESCRIPTION).read_text()))
        intact = all(_digest(folder / f"{n}.npy") == digest for n, digest in entry.digests.items())
    except (OSError, ValueError, TypeError):
        return None
    return entry if intact else None


def _store(session: Session, folder: Path) -> _Entry:
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".") as scratch:
            entry = _write(session, Path(scratch) / "new")
            _put(Path(scratch), folder)
    except OSError as error:
        raise BadFolder(
            f"{folder.parent}: cannot keep prepared slices ({error.strerror or error}); "
            "the cache must be a folder that can be written.",
            safe=phrase("prepared slices cannot be kept ({why})", why=Reason.of(error)),
        ) from None
    return entry


def _put(scratch: Path, folder: Path) -> None:
    """Move a new entry to its place; an intact one, which may be in use, is never moved."""
    try:
        (scratch / "new").rename(folder)
    except OSError:
        if _intact(folder):  # another process stored the same session a moment earlier
            return
        folder.rename(scratch / "damaged")
        (scratch / "new").rename(folder)


def _write(session: Session, folder: Path) -> _Entry:
    folder.mkdir()
    arrays = {"images": session.images, **session.masks}
    for name, array in arrays.items():
        np.save(folder / f"{name}.npy", array)
    digests = {name: _digest(folder / f"{name}.npy") for name in arrays}
    entry = _Entry(session.patient, session.session, session.contrasts, digests)
    (folder / DESCRIPTION).write_text(json.dumps(asdict(entry)))
    return entry
