"""An image stack holds many single images of one contrast, with variables, in one .npz file."""

import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any, LiteralString, TypeAlias

import numpy as np
from numpy.typing import NDArray

from grandrounds.core.errors import BadImage, BadSite
from grandrounds.core.sentence import Name, Sentence, phrase
from grandrounds.data.cohort import NAMELESS, SPLITS, Cohort, Session, SplitName, split_patients
from grandrounds.data.elements import Elements

Arrays: TypeAlias = Mapping[str, NDArray[Any]]
IMAGE_ARRAY, PATIENT_ROW = "images", "patient"
_UNREADABLE = (OSError, EOFError, ValueError, zipfile.BadZipFile)


@dataclass(frozen=True)
class Stack:
    """Images (N, H, W) in [0, 1], the rows of each patient, and each patient's variables."""

    images: NDArray[np.float32]
    rows: Mapping[str, tuple[int, ...]]
    values: Mapping[str, Mapping[str, float]]


def read_arrays(path: Path) -> Arrays:
    """Read all arrays of an .npz file. Raises `BadImage`."""
    if not zipfile.is_zipfile(path):
        raise BadImage(
            f"{path}: is missing, or no .npz file; it must be one of plain arrays.",
            safe=phrase("the image stack is missing, or no .npz file"),
        )
    try:
        with np.load(path, allow_pickle=False) as file:
            return {name: file[name] for name in file.files}
    except _UNREADABLE as error:
        raise BadImage(
            f"{path}: cannot be read ({error}); it must be an .npz file of plain arrays.",
            safe=phrase("the image stack is damaged"),
        ) from None


def stack_of(arrays: Arrays, variables: Sequence[str], path: Path) -> Stack:
    """Make a stack from a file's arrays and the named variables; nan is a missing value.

    Without the array `patient` each image belongs to a patient of its own. Raises `BadImage`.
    """
    for name in (IMAGE_ARRAY, *variables):
        if name not in arrays:
            names = ", ".join(arrays) or "none"
            raise BadImage(
                f"{path}: there is no array '{name}'; the file must have one ({names}).",
                safe=_lacks(name),
            )
    images = _images(arrays[IMAGE_ARRAY], path)
    for name in (PATIENT_ROW, *variables):
        if name in arrays and arrays[name].shape != (len(images),):
            raise BadImage(
                f"{path}: '{name}' has shape {arrays[name].shape}; it must have one value for each "
                f"of the {len(images)} images, ({len(images)},).",
                safe=_of_variable("has not one value for each image", name),
            )
    rows = _rows_of(arrays, len(images))
    columns = {name: _numbers(arrays[name], name, path) for name in variables}
    values = {
        patient: _values(columns, patient_rows, path) for patient, patient_rows in rows.items()
    }
    return Stack(images, rows, values)


def is_stack(data: Path) -> bool:
    """Tell whether a site's data is an image stack."""
    return data.suffix.lower() == ".npz"


def stack_cohort(site: str, path: Path, elements: Elements) -> Cohort:
    """Make a cohort from a stack: a patient's images are slices of the study's first contrast.

    Smaller images are padded with 0 around them. Raises `BadImage` and `BadSite`.
    """
    if not elements.contrasts:
        raise BadSite(
            f"{path}: holds images; the study's elements.contrasts must name what of.",
            safe=phrase("its data are images; the study's elements.contrasts must name what of"),
        )
    if elements.intensity:
        raise BadSite(
            f"{path}: holds images in [0, 1] already; elements.intensity would do nothing, so take "
            "it from the study.",
            safe=phrase("its images are in [0, 1] already; elements.intensity would do nothing"),
        )
    stack = stack_of(read_arrays(path), elements.variables, path)
    images = _pad(stack.images, elements.size, path)
    split_of = split_patients(stack.rows, elements.split, site=site)
    splits: dict[SplitName, list[Session]] = {split: [] for split in SPLITS}
    for patient, rows in stack.rows.items():
        patient_images, values = images[list(rows), None], stack.values[patient]
        session = Session(
            *(patient, "", elements.contrasts[:1], patient_images),
            values=values,
            prints=_prints(patient_images),
        )
        splits[split_of[patient]].append(session)
    return Cohort(site, {split: tuple(sessions) for split, sessions in splits.items()})


def _prints(images: NDArray[np.float32]) -> tuple[str, ...]:
    """Return a digest of each image that shows something: blank ones are alike and mean nothing."""
    shown = [image for image in images if image.min() < image.max()]
    return tuple(sha256(np.ascontiguousarray(image).data).hexdigest() for image in shown)


def _lacks(name: str) -> Sentence:
    if name == IMAGE_ARRAY:
        return phrase("the image stack has no images")
    return phrase("the image stack has no variable {name}", name=Name(name))


def _of_variable(problem: LiteralString, name: str) -> Sentence:
    if name == PATIENT_ROW:
        return phrase("the array of patients in the image stack " + problem)
    return phrase("the variable {name} of the image stack " + problem, name=Name(name))


def _images(images: NDArray[Any], path: Path) -> NDArray[np.float32]:
    single = images[:, 0] if images.ndim == 4 and images.shape[1] == 1 else images
    if single.ndim != 3 or not single.size:
        raise BadImage(
            f"{path}: '{IMAGE_ARRAY}' has shape {images.shape}; it must be "
            "(N, H, W) or (N, 1, H, W).",
            safe=phrase("the images of the stack are not (N, H, W) or (N, 1, H, W)"),
        )
    if single.dtype == np.uint8:
        return single.astype(np.float32) / np.float32(255)
    if single.dtype.kind != "f" or not (single.min() >= 0 and single.max() <= 1):
        raise BadImage(
            f"{path}: '{IMAGE_ARRAY}' is {single.dtype} from {single.min():g} to {single.max():g}; "
            "it must be uint8, or floating-point from 0 to 1.",
            safe=phrase("the images of the stack are not uint8, or floating-point from 0 to 1"),
        )
    return single.astype(np.float32)


def _rows_of(arrays: Arrays, count: int) -> dict[str, tuple[int, ...]]:
    if PATIENT_ROW not in arrays:
        return {f"{NAMELESS}{row:06d}": (row,) for row in range(count)}
    rows: dict[str, list[int]] = {}
    for row, patient in enumerate(arrays[PATIENT_ROW]):
        rows.setdefault(str(patient), []).append(row)
    return {patient: tuple(patient_rows) for patient, patient_rows in rows.items()}


def _numbers(column: NDArray[Any], name: str, path: Path) -> NDArray[np.float64]:
    if column.dtype.kind not in "biuf" or np.isinf(column).any():
        raise BadImage(
            f"{path}: '{name}' is {column.dtype} or infinite; each value must be a number, "
            "or nan where missing.",
            safe=_of_variable("holds what is no number", name),
        )
    return column.astype(np.float64)


def _values(
    columns: Mapping[str, NDArray[np.float64]], rows: Sequence[int], path: Path
) -> dict[str, float]:
    values: dict[str, float] = {}
    for name, column in columns.items():
        distinct = np.unique(column[list(rows)])
        if len(distinct) > 1:
            raise BadImage(
                f"{path}: the images of one patient differ in '{name}' "
                f"({distinct[0]:g} and {distinct[1]:g}); a variable is the patient's.",
                safe=_of_variable("differs between the images of one patient", name),
            )
        values[name] = float(distinct[0])
    return values


def _pad(images: NDArray[np.float32], size: tuple[int, int], path: Path) -> NDArray[np.float32]:
    missing = [wanted - actual for wanted, actual in zip(size, images.shape[1:], strict=True)]
    if min(missing) < 0:
        shape = " x ".join(str(pixels) for pixels in images.shape[1:])
        raise BadImage(
            f"{path}: images of {shape} pixels are larger than elements.size {list(size)}; "
            "make them smaller, or agree on a larger size.",
            safe=phrase("the images of the stack are larger than elements.size"),
        )
    edges = [(pixels // 2, pixels - pixels // 2) for pixels in missing]
    return np.pad(images, [(0, 0), *edges])
