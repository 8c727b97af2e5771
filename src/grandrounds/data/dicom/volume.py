"""A volume is its voxels, where they lie, how they were acquired, and what was odd about it."""

import gzip
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import ceil, floor
from pathlib import Path
from typing import cast

import numpy as np
from numpy.typing import NDArray

from grandrounds.core.files import write_bytes, write_text
from grandrounds.core.sentence import Sentence, phrase
from grandrounds.data.acquisition import Acquisition, sidecar_of
from grandrounds.data.dicom.series import Series
from grandrounds.data.nifti import new_nifti
from grandrounds.data.space import Affine

_MAKERS = {
    "siemens": "Siemens",
    "philips": "Philips",
    "ge medical": "GE",
    "ge health": "GE",
    "uih": "UIH",
    "united imaging": "UIH",
    "canon": "Canon",
    "toshiba": "Canon",
    "hitachi": "Hitachi",
    "bruker": "Bruker",
    "mediso": "Mediso",
    "fonar": "Fonar",
}


@dataclass(frozen=True)
class Volume:
    """Voxels (i, j, k): a picture's column and row, and the slice; their affine to millimetres.

    The affine has NIfTI's axes: the patient's right, front and head are where it grows. `remarks`
    say what was decided; they name nobody and may leave the site.
    """

    voxels: NDArray[np.float32]
    affine: Affine
    acquisition: Acquisition
    manufacturer: str = ""
    remarks: tuple[Sentence, ...] = ()

    def to_sidecar(self) -> Mapping[str, object]:
        """Return the BIDS sidecar: physics, and whose scanner it was; nothing that identifies."""
        maker = {"Manufacturer": self.manufacturer} if self.manufacturer else {}
        return {"Modality": "MR", **maker, **self.acquisition.to_sidecar()}


def write_volume(volume: Volume, path: Path) -> None:
    """Write a volume as NIfTI (.nii or .nii.gz) and, beside it, its BIDS sidecar.

    The sidecar comes first, so that where there is a volume there is one. Raises `DiskFailed`.
    """
    content = new_nifti(volume.voxels, volume.affine)
    if path.name.endswith(".gz"):
        content = gzip.compress(content, 1, mtime=0)  # of equal voxels, equal bytes
    write_text(sidecar_of(path), json.dumps(volume.to_sidecar(), indent=2) + "\n")
    write_bytes(path, content)


def volume_of(series: Series, stack: NDArray[np.float32]) -> Volume:
    """Return the volume of decoded pictures (slice, row, column); NaN is padding in them."""
    acquisition, doubts = series.acquisition()
    stack, filled = _filled(stack)
    voxels, affine = _upright(stack.transpose(2, 1, 0), series.grid.affine, series.grid.shear)
    inverted = series.first.photometric == "MONOCHROME1"
    turned = (phrase("grey values are stored inverted (MONOCHROME1): turned"),) if inverted else ()
    remarks = (*series.remarks, *turned, *filled, *doubts)
    return Volume(voxels, affine, acquisition, _maker(series.first.manufacturer), remarks)


def _maker(told: str) -> str:
    """Return a manufacturer by its usual name; a text that is none of them is not carried on."""
    return next((name for word, name in _MAKERS.items() if word in told.lower()), "")


def _filled(stack: NDArray[np.float32]) -> tuple[NDArray[np.float32], tuple[Sentence, ...]]:
    """Put background where there is padding: 0, or the least value where some are negative."""
    padded = np.isnan(stack)
    if not padded.any():
        return stack, ()
    rest = stack[~padded]
    least = min(0.0, float(rest.min())) if rest.size else 0.0
    note = phrase(
        "{percent} % of the voxels are padding: they count as background",
        percent=round(100 * float(padded.mean()), 1),
    )
    return np.where(padded, np.float32(least), stack), (note,)


def _upright(
    voxels: NDArray[np.float32], affine: Affine, shear: tuple[float, float]
) -> tuple[NDArray[np.float32], Affine]:
    """Shift each slice to where it lies on a grid with right angles that holds all of them."""
    if shear == (0.0, 0.0):
        return voxels, affine
    from scipy import ndimage  # pyright: ignore[reportMissingTypeStubs] - few volumes need it

    shift = cast("Callable[..., NDArray[np.float32]]", ndimage.shift)  # pyright: ignore[reportUnknownMemberType]
    slices = voxels.shape[2]
    ends = [(min(0.0, each * (slices - 1)), max(0.0, each * (slices - 1))) for each in shear]
    before = [-floor(low) for low, _ in ends]
    after = [ceil(high) for _, high in ends]
    result = np.empty(
        (voxels.shape[0] + before[0] + after[0], voxels.shape[1] + before[1] + after[1], slices),
        dtype=np.float32,
    )
    least = float(voxels.min())
    for k in range(slices):
        padded = np.pad(
            voxels[:, :, k],
            list(zip(before, after, strict=True)),
            constant_values=least,
        )
        moved = (shear[0] * k, shear[1] * k)
        result[:, :, k] = shift(padded, moved, order=1, cval=least)
    origin = affine @ np.array([-before[0], -before[1], 0, 1])
    larger = affine.copy()
    larger[:3, 3] = origin[:3]
    return result, larger
