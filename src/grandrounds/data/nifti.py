"""A site's folder holds NIfTI volumes, which are found by name and read in one orientation."""

import gzip
import re
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import permutations
from pathlib import Path

import nibabel as nib
import numpy as np
from nibabel.filebasedimages import ImageFileError
from nibabel.spatialimages import HeaderDataError
from numpy.typing import NDArray

from grandrounds.core.errors import BadImage, BadSite
from grandrounds.core.sentence import Reason, phrase

NAME = re.compile(
    r"(?P<patient>sub-[A-Za-z0-9]+)(_(?P<session>ses-[A-Za-z0-9]+))?"
    r"_(?P<kind>brainmask|lesionmask|(?![a-z]*mask)[A-Za-z0-9]+)\.nii(\.gz)?"
)
RULE = (
    "sub-ID[_ses-ID]_CONTRAST.nii.gz (or .nii), a mask's with brainmask or lesionmask as CONTRAST"
)
LISTED = 5  # names spelled out in one message
_UNREADABLE = (OSError, EOFError, ValueError, zlib.error, ImageFileError, HeaderDataError)


@dataclass(frozen=True)
class SessionFiles:
    """The files of one session: contrast to path, and "brain" or "lesion" to the mask's path."""

    patient: str
    session: str
    contrasts: Mapping[str, Path]
    masks: Mapping[str, Path] = field(default_factory=dict[str, Path])


@dataclass(frozen=True)
class Grid:
    """Where voxels lie: shape (slice, row, column), and the affine of these axes to millimetres."""

    shape: tuple[int, int, int]
    affine: NDArray[np.float64]

    @property
    def spacing(self) -> tuple[float, float, float]:
        """Return the distance between neighbours along slice, row and column, in mm."""
        along_slice, along_row, along_column = np.linalg.norm(self.affine[:3, :3], axis=0)
        return float(along_slice), float(along_row), float(along_column)

    def distance(self, other: "Grid") -> float:
        """Return the largest distance in mm between the same corners of two grids of one shape."""
        corners = np.indices((2, 2, 2)).reshape(3, 8) * (np.array(self.shape)[:, None] - 1)
        shifts = (self.affine - other.affine) @ np.vstack([corners, np.ones(8)])
        return float(np.linalg.norm(shifts[:3], axis=0).max())


def find_sessions(folder: Path) -> tuple[SessionFiles, ...]:
    """List the sessions of a site's folder, sorted; only .nii and .nii.gz files are read.

    Raises `BadSite` where the folder cannot be read or holds no volume, where a volume's name does
    not follow the rule, and where a volume occurs twice.
    """
    paths = _volumes(folder)
    matches = {path: NAME.fullmatch(path.name) for path in paths}
    if misnamed := [path.name for path, match in matches.items() if not match]:
        raise BadSite(
            f"{folder}: {_listed(misnamed)} must be named {RULE}.",
            safe=phrase("{number} volumes are not named by the rule", number=len(misnamed)),
        )
    kinds: dict[tuple[str, str], dict[str, Path]] = {}
    for path, match in matches.items():
        assert match
        volumes = kinds.setdefault((match["patient"], match["session"] or ""), {})
        if duplicate := volumes.get(match["kind"]):
            raise BadSite(
                f"{folder}: {duplicate.name} and {path.name} are one volume; keep only one.",
                safe=phrase("one volume lies there twice, as .nii and .nii.gz"),
            )
        volumes[match["kind"]] = path
    return tuple(_session(*key, volumes=kinds[key]) for key in sorted(kinds))


def read_grid(path: Path) -> Grid:
    """Read where a volume's voxels lie, from its header alone."""
    image, affine = _open(path)
    turn = _turn(affine)
    first, second, third = (image.shape[axis] for axis in turn.order)
    # A reversed axis starts at what was its far end.
    columns = affine[:3, list(turn.order)] * turn.steps
    far_ends = np.where(np.array(turn.steps) < 0, np.array([first, second, third]) - 1, 0)
    turned = np.eye(4)
    turned[:3, :3], turned[:3, 3] = columns, affine[:3, 3] - columns @ far_ends
    return Grid((first, second, third), turned)


def read_voxels(path: Path) -> NDArray[np.float32]:
    """Read a volume as (slice, row, column), turned so that a slice is a radiological picture.

    Slices are axial and run from the feet up; in each, anterior is up and the patient's left is on
    the right side. Raises `BadImage` where the file is damaged or a voxel is not finite.
    """
    image, affine = _open(path)
    try:
        _check_compression(path)
        data = image.get_fdata(dtype=np.float32, caching="unchanged").reshape(image.shape[:3])
    except _UNREADABLE as error:
        raise _damaged(path, error) from None
    if bad := int(np.count_nonzero(~np.isfinite(data))):
        raise BadImage(
            f"{path}: {bad} of {data.size} voxels are NaN or infinite; each must be a number.",
            safe=phrase("{bad} voxels of a volume are NaN or infinite", bad=bad),
        )
    turn = _turn(affine)
    along_slice, along_row, along_column = (slice(None, None, step) for step in turn.steps)
    return np.ascontiguousarray(data.transpose(turn.order)[along_slice, along_row, along_column])


def to_nifti(voxels: NDArray[np.float32], like: Path) -> bytes:
    """Return a NIfTI file's content: (slice, row, column) turned onto another volume's voxel axes.

    It has the other's shape and affine, and float32 voxels.
    """
    image, affine = _open(like)
    turn = _turn(affine)
    along_slice, along_row, along_column = (slice(None, None, step) for step in turn.steps)
    turned = voxels[along_slice, along_row, along_column].transpose(np.argsort(turn.order))
    header = image.header.copy()
    header.set_data_dtype(np.float32)  # pyright: ignore[reportUnknownMemberType]
    header["cal_min"], header["cal_max"] = 0, 0  # the window of the other's grey values
    written = nib.Nifti1Image(np.ascontiguousarray(turned), affine, header)
    return written.to_bytes()  # pyright: ignore[reportUnknownMemberType]


@dataclass(frozen=True)
class _Turn:
    """Which voxel axis becomes slice, row and column, and whether it is reversed (step -1)."""

    order: tuple[int, int, int]
    steps: tuple[int, int, int]


def _turn(affine: NDArray[np.float64]) -> _Turn:
    """Find the voxel axes nearest to up, to the patient's back and to the patient's left."""
    unit = affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0)
    towards = np.stack([unit[2], -unit[1], -unit[0]])
    first, second, third = max(permutations(range(3)), key=lambda o: _alignment(towards, o))
    signs = np.sign([towards[0, first], towards[1, second], towards[2, third]])
    return _Turn((first, second, third), (int(signs[0]), int(signs[1]), int(signs[2])))


def _alignment(towards: NDArray[np.float64], order: tuple[int, ...]) -> float:
    return float(np.abs(towards[[0, 1, 2], list(order)]).sum())


def _volumes(folder: Path) -> list[Path]:
    try:
        paths = sorted(folder.iterdir())
    except OSError as error:
        raise BadSite(
            f"{folder}: {error.strerror}; a site's data must be a readable folder "
            "of NIfTI volumes.",
            safe=phrase("its folder of data cannot be read ({why})", why=Reason.of(error)),
        ) from None
    volumes = [path for path in paths if path.name.lower().endswith((".nii", ".nii.gz"))]
    if not volumes:
        raise BadSite(
            f"{folder}: no NIfTI volume lies in this folder; it must hold {RULE}.",
            safe=phrase("its folder of data holds no NIfTI volume"),
        )
    return volumes


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - LISTED} more" if len(names) > LISTED else ""
    return ", ".join(names[:LISTED]) + more


def _session(patient: str, session: str, *, volumes: Mapping[str, Path]) -> SessionFiles:
    return SessionFiles(
        patient,
        session,
        contrasts={kind: path for kind, path in volumes.items() if not kind.endswith("mask")},
        masks={k.removesuffix("mask"): path for k, path in volumes.items() if k.endswith("mask")},
    )


def _open(path: Path) -> tuple[nib.Nifti1Image, NDArray[np.float64]]:
    try:
        image = nib.load(path)  # pyright: ignore[reportUnknownMemberType]
    except _UNREADABLE as error:
        raise _damaged(path, error) from None
    if not isinstance(image, nib.Nifti1Image) or np.dtype(image.get_data_dtype()).kind not in "iuf":
        raise BadImage(
            f"{path}: holds no grey values; it must be a NIfTI volume of numbers.",
            safe=phrase("a volume holds no grey values"),
        )
    if len(image.shape) < 3 or any(length != 1 for length in image.shape[3:]):
        axes = " x ".join(str(length) for length in image.shape)
        raise BadImage(
            f"{path}: has {len(image.shape)} axes ({axes}); a volume has 3.",
            safe=phrase("an image has {axes} axes; a volume has 3", axes=len(image.shape)),
        )
    affine = np.asarray(image.affine, dtype=np.float64)
    codes = int(image.header["sform_code"]), int(image.header["qform_code"])
    if codes == (0, 0) or not abs(np.linalg.det(affine)) > 0:
        raise BadImage(
            f"{path}: has no orientation (sform and qform are unset or degenerate), so left and "
            "right are unknown; convert it again from its DICOM series.",
            safe=phrase("a volume has no orientation (sform and qform)"),
        )
    return image, affine


def _check_compression(path: Path) -> None:
    # The reader stops at the last voxel, before the checksum that would show damage.
    if path.suffix == ".gz":
        with gzip.open(path) as stream:
            while stream.read(1 << 20):
                pass


def _damaged(path: Path, error: Exception) -> BadImage:
    reason = str(error).splitlines()[0].rstrip(".")
    why = Reason.of(error) if isinstance(error, OSError) else Reason(0)
    return BadImage(
        f"{path}: cannot be read ({reason}); copy it again from its source.",
        safe=phrase("a volume cannot be read ({why})", why=why)
        if why.number
        else phrase("a volume is damaged"),
    )
