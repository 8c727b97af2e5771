"""NIfTI volumes are read in one orientation, and where their voxels lie in millimetres."""

import gzip
import zlib
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from math import prod
from pathlib import Path

import nibabel as nib
import numpy as np
from nibabel import imageglobals
from nibabel.filebasedimages import ImageFileError
from nibabel.spatialimages import HeaderDataError
from numpy.typing import NDArray

from grandrounds.core.errors import BadImage
from grandrounds.core.sentence import Reason, phrase
from grandrounds.data.header import SpaceHeader, read_space, storage_problem
from grandrounds.data.space import Affine, Forms, Remark, Space, apart, place, turn_of

MOST_VOXELS = 1 << 29  # of a volume: 2 GiB of float32
_UNREADABLE = (
    *(OSError, EOFError, ValueError, OverflowError, MemoryError),
    *(zlib.error, ImageFileError, HeaderDataError),
)


@dataclass(frozen=True)
class Grid:
    """Where voxels lie: shape (slice, row, column), and the affine of these axes to millimetres.

    `remarks` say what is odd about the header, and was decided.
    """

    shape: tuple[int, int, int]
    affine: Affine
    remarks: tuple[Remark, ...] = ()

    @property
    def spacing(self) -> tuple[float, float, float]:
        """Return the distance between neighbours along slice, row and column, in mm."""
        along_slice, along_row, along_column = np.linalg.norm(self.affine[:3, :3], axis=0)
        return float(along_slice), float(along_row), float(along_column)

    def distance(self, other: "Grid") -> float:
        """Return the largest distance in mm between the same corners of two grids of one shape."""
        return apart(self.affine, other.affine, self.shape)


def read_grid(path: Path) -> Grid:
    """Read where a volume's voxels lie, from its header alone."""
    image, space = _open(path)
    affine, turn = space.affine, turn_of(space.affine)
    first, second, third = (image.shape[axis] for axis in turn.order)
    # A reversed axis starts at what was its far end.
    columns = affine[:3, list(turn.order)] * turn.steps
    far_ends = np.where(np.array(turn.steps) < 0, np.array([first, second, third]) - 1, 0)
    turned = np.eye(4)
    turned[:3, :3], turned[:3, 3] = columns, affine[:3, 3] - columns @ far_ends
    return Grid((first, second, third), turned, space.remarks)


def read_voxels(path: Path) -> NDArray[np.float32]:
    """Read a volume as (slice, row, column), turned so that a slice is a radiological picture.

    Slices are axial and run from the feet up; in each, anterior is up and the patient's left is on
    the right side. Raises `BadImage` where the file is damaged or a voxel is not finite.
    """
    image, space = _open(path)
    try:
        _check_compression(path)
        with np.errstate(all="ignore"):  # what is no number is counted below
            data = image.get_fdata(dtype=np.float32, caching="unchanged").reshape(image.shape[:3])
    except _UNREADABLE as error:
        raise _damaged(path, error) from None
    if bad := int(np.count_nonzero(~np.isfinite(data))):
        raise BadImage(
            f"{path}: {bad} of {data.size} voxels are NaN or infinite; each must be a number.",
            safe=phrase("{bad} voxels of a volume are NaN or infinite", bad=bad),
        )
    turn = turn_of(space.affine)
    along_slice, along_row, along_column = (slice(None, None, step) for step in turn.steps)
    return np.ascontiguousarray(data.transpose(turn.order)[along_slice, along_row, along_column])


def on_axes_of(voxels: NDArray[np.float32], like: Path) -> NDArray[np.float32]:
    """Turn (slice, row, column) onto another volume's own voxel axes."""
    return _turned(voxels, _open(like)[1])


def _turned(voxels: NDArray[np.float32], space: Space) -> NDArray[np.float32]:
    turn = turn_of(space.affine)
    along_slice, along_row, along_column = (slice(None, None, step) for step in turn.steps)
    return voxels[along_slice, along_row, along_column].transpose(np.argsort(turn.order))


def to_nifti(voxels: NDArray[np.float32], like: Path, *, text: str = "") -> bytes:
    """Return a NIfTI file's content: (slice, row, column) turned onto another volume's voxel axes.

    It has the other's shape, transforms and unit of length, float32 voxels, and a `text` of up to
    79 bytes. Nothing else of the other's header is carried over: its texts, extensions and times
    are of another acquisition.
    """
    _, space = _open(like)
    turned = _turned(voxels, space)
    header = nib.Nifti1Header()
    header["descrip"] = text
    header.set_data_dtype(np.float32)  # pyright: ignore[reportUnknownMemberType]
    header.set_data_shape(turned.shape)  # pyright: ignore[reportUnknownMemberType]
    header["xyzt_units"] = space.header.unit
    if space.qform is not None:
        header.set_qform(  # pyright: ignore[reportUnknownMemberType]
            space.qform, space.header.qform_code
        )
    if space.sform is not None:
        if space.qform is None:
            header.set_zooms(np.linalg.norm(space.sform[:3, :3], axis=0))
        header.set_sform(  # pyright: ignore[reportUnknownMemberType]
            space.sform, space.header.sform_code
        )
    written = nib.Nifti1Image(np.ascontiguousarray(turned), None, header)
    return written.to_bytes()  # pyright: ignore[reportUnknownMemberType]


def new_nifti(voxels: NDArray[np.float32], affine: Affine) -> bytes:
    """Return a NIfTI file's content of voxels (i, j, k) and their affine to millimetres.

    Whole numbers are stored as int16 where they fit, all else as float32; the header holds nothing
    but the grid.
    """
    whole = voxels.size and bool(np.isfinite(voxels).all()) and bool((voxels % 1 == 0).all())
    fits = whole and voxels.min() >= -(2**15) and voxels.max() < 2**15
    return _placed(voxels.astype(np.int16 if fits else np.float32), affine)


def _placed(voxels: NDArray[np.generic], affine: Affine) -> bytes:
    header = nib.Nifti1Header()
    header["xyzt_units"] = 2  # mm
    image = nib.Nifti1Image(voxels, affine, header, dtype=voxels.dtype)
    image.set_qform(affine, 1)  # pyright: ignore[reportUnknownMemberType]
    image.set_sform(affine, 1)  # pyright: ignore[reportUnknownMemberType]
    return image.to_bytes()  # pyright: ignore[reportUnknownMemberType]


def axis_codes(path: Path) -> str:
    """Return where a file's own voxel axes run, such as LPS: to the left, back and up."""
    _, space = _open(path)
    turn = turn_of(space.affine)
    towards = zip(turn.order, turn.steps, (("I", "S"), ("A", "P"), ("R", "L")), strict=True)
    codes = {axis: ends[step > 0] for axis, step, ends in towards}
    return "".join(codes[axis] for axis in range(3))


def canonical_nifti(voxels: NDArray[np.generic], affine: Affine) -> bytes:
    """Return a NIfTI file's content, compressed: its axes run to the right, forward and up (RAS).

    `voxels` are (slice, row, column), `affine` maps these axes to millimetres. The same voxels give
    the same bytes.
    """
    turned = np.ascontiguousarray(voxels[:, ::-1, ::-1].transpose())
    _, last_row, last_column = np.array(voxels.shape) - 1
    canonical = np.eye(4)
    canonical[:3, :3] = affine[:3, :3][:, ::-1] * [-1, -1, 1]
    canonical[:3, 3] = affine[:3] @ [0, last_row, last_column, 1]
    return gzip.compress(_placed(turned, canonical), compresslevel=5, mtime=0)


def _open(path: Path) -> tuple[nib.Nifti1Image, Space]:
    try:
        with _silent():
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
    if prod(image.shape) > MOST_VOXELS:
        axes = " x ".join(str(length) for length in image.shape)
        raise BadImage(
            f"{path}: would have {axes} voxels; at most {MOST_VOXELS} are read.",
            safe=phrase("a volume would have more than {most} voxels", most=MOST_VOXELS),
        )
    if 0 in image.shape:
        raise BadImage(
            f"{path}: has an axis of length 0; a volume must have voxels.",
            safe=phrase("a volume has no voxels"),
        )
    try:
        header = read_space(path)
    except _UNREADABLE as error:
        raise _damaged(path, error) from None
    return image, place(path, header, _forms(image, header), image.shape[:3])


@contextmanager
def _silent() -> Generator[None, None, None]:
    """Keep the library from printing what it mends in a header; `place` judges that."""
    before = imageglobals.logger.disabled
    imageglobals.logger.disabled = True
    try:
        with np.errstate(all="ignore"):  # it computes with an infinite voxel size
            yield
    finally:
        imageglobals.logger.disabled = before


def _forms(image: nib.Nifti1Image, header: SpaceHeader) -> Forms:
    sform = image.header.get_sform(coded=True)[0]
    try:  # a quaternion may be none of a rotation
        qform = image.header.get_qform(coded=True)[0] if header.sizes_are_lengths else None
    except (ValueError, HeaderDataError):
        qform = None
    return Forms(_matrix(sform), _matrix(qform))


def _matrix(found: object) -> Affine | None:
    return None if found is None else np.asarray(found, dtype=np.float64)


def _check_compression(path: Path) -> None:
    # The reader stops at the last voxel, before the checksum that would show damage.
    if path.suffix == ".gz":
        with gzip.open(path) as stream:
            while stream.read(1 << 20):
                pass


def _damaged(path: Path, error: Exception) -> BadImage:
    why = Reason.of(error) if isinstance(error, OSError) else Reason(0)
    reason = "" if why.number else storage_problem(path)
    reason = reason or (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")
    return BadImage(
        f"{path}: cannot be read ({reason}); copy it again from its source.",
        safe=phrase("a volume cannot be read ({why})", why=why)
        if why.number
        else phrase("a volume is damaged"),
    )
