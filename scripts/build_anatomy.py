"""Build the tissue fractions that the simulator ships, from nilearn's MNI152 2009a maps.

Run from the repository root with the development dependencies; the same bytes come out every time.
"""

import warnings
from pathlib import Path

import nibabel as nib
import nilearn
import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

TARGET = Path("src/grandrounds/data/anatomy/tissues.npz")
Z_RANGE = slice(40, 136)  # template planes at 1 mm; what a tilted head between 60 and 112 can reach
FACTOR = 2  # voxel edge in mm
CLOSING = 6.0  # mm; wide fissures count as inside the skull
DEEP = 22.0  # mm below the brain's surface, grey matter is deep grey, but only around the thalamus:
CORE, CORE_RADII = (80.0, 128.0, 98.0), (26.0, 34.0, 36.0)  # mm; the medial cortex is as deep
RAMP = 0.6  # mm over which one layer gives way to the next
LAYERS = (  # outside the brain, by distance from it in mm
    ("csf", -np.inf, 1.8),
    ("bone", 1.8, 3.8),
    ("marrow", 3.8, 7.2),
    ("bone", 7.2, 8.8),
    ("muscle", 8.8, 9.8),
    ("fat", 9.8, 15.0),
)
TISSUES = ("csf", "grey", "white", "deep grey", "fat", "muscle", "marrow", "bone")


def template(tissue: str) -> NDArray[np.float64]:
    folder = Path(nilearn.__file__).parent / "datasets" / "data"
    image = nib.Nifti1Image.from_filename(
        folder / f"mni_icbm152_{tissue}_tal_nlin_sym_09a_converted.nii.gz"
    )
    return image.get_fdata().T / 255


def filled(tissue: NDArray[np.bool_]) -> NDArray[np.bool_]:
    grown = depth(~np.pad(tissue, 10)) <= CLOSING
    solid = np.stack([np.asarray(ndimage.binary_fill_holes(plane)) for plane in grown])
    shrunk = depth(solid) > CLOSING
    return shrunk[10:-10, 10:-10, 10:-10] | tissue


def depth(inside: NDArray[np.bool_]) -> NDArray[np.float64]:
    return np.asarray(ndimage.distance_transform_edt(inside), np.float64)


def signed_distance(inside: NDArray[np.bool_]) -> NDArray[np.float64]:
    return depth(~inside) - depth(inside) + inside - 0.5


def above(distance: NDArray[np.float64], limit: float, ramp: float) -> NDArray[np.float64]:
    return ((distance - limit) / ramp + 0.5).clip(0, 1)


def core(shape: tuple[int, ...]) -> NDArray[np.float64]:
    offsets = (np.arange(n) - middle for n, middle in zip(shape, CORE, strict=True))
    scaled = (offset / radius for offset, radius in zip(offsets, CORE_RADII, strict=True))
    planes, rows, columns = np.meshgrid(*scaled, indexing="ij", sparse=True)
    radius = np.sqrt(planes**2 + rows**2 + columns**2)
    return above(-radius, -1, 0.15)


def fractions() -> dict[str, NDArray[np.float64]]:
    grey, white = template("gm"), template("wm")
    distance = signed_distance(filled(grey + white > 0.35))
    outside = above(distance, 0, RAMP)
    deep = above(-distance, DEEP, 4.0) * core(grey.shape)
    tissues = {tissue: np.zeros_like(grey) for tissue in TISSUES}
    tissues["white"] = white
    tissues["grey"] = grey * (1 - deep)
    tissues["deep grey"] = grey * deep
    tissues["csf"] = (1 - grey - white).clip(0) * (1 - outside)
    for tissue, start, end in LAYERS:
        layer = above(distance, start, RAMP) * (1 - above(distance, end, RAMP))
        tissues[tissue] += layer * outside * (1 - grey - white).clip(0)
    return tissues


def reduced(volume: NDArray[np.float64]) -> NDArray[np.float64]:
    planes, rows, columns = (length // FACTOR * FACTOR for length in volume.shape)
    blocks = volume[:planes, :rows, :columns].reshape(
        planes // FACTOR, FACTOR, rows // FACTOR, FACTOR, columns // FACTOR, FACTOR
    )
    return blocks.mean(axis=(1, 3, 5))


def main() -> None:
    warnings.simplefilter("ignore")
    tissues = fractions()
    volume = np.stack([reduced(tissues[tissue][Z_RANGE]) for tissue in TISSUES], axis=-1)
    origin = np.array([Z_RANGE.start, 0, 0]) + (FACTOR - 1) / 2
    TARGET.parent.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(
        TARGET,
        fractions=np.floor(volume * 255 + 1e-3).astype(np.uint8),
        origin=origin,
        spacing=np.array(float(FACTOR)),
        tissues=np.array(TISSUES),
    )
    print(f"{TARGET}: {volume.shape}, {TARGET.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
