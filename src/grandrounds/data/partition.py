"""One public dataset is split among pseudo-sites; a Dirichlet draw sets their label proportions."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import inf, sqrt
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from grandrounds.core.errors import BadFolder, BadImage, BadSite, BadStudy
from grandrounds.core.files import make_output_folder
from grandrounds.core.seeds import seed_for
from grandrounds.data.stack import IMAGE_ARRAY, PATIENT_ROW, Arrays, Stack, read_arrays, stack_of

_T = TypeVar("_T")
TRIES = 10_000  # draws of the proportions, of which the first that suits every site is used
MEDMNIST = ("train", "val", "test")  # parts of a MedMNIST file; Yang et al. 2023


@dataclass(frozen=True)
class PartitionPlan:
    """How patients are assigned: to how many sites, and how these differ.

    `alpha` is the concentration of the Dirichlet distribution about the dataset's own proportions;
    infinity gives every site these. `cases` limits the patients of a site (0: no limit);
    `least` is the fewest of each class that a site may have.
    """

    sites: int
    alpha: float
    seed: int
    least: int = 10
    cases: int = 0

    def __post_init__(self) -> None:
        """Check the values, as types do not limit them."""
        if self.sites < 2:
            raise BadStudy(f"--sites is {self.sites}; it must be 2 or more")
        if not self.alpha > 0:
            raise BadStudy(f"--alpha is {self.alpha:g}; it must be above 0 (inf: all sites alike)")
        for name, value in {"least": self.least, "cases": self.cases}.items():
            if value < 0:
                raise BadStudy(f"--{name} is {value}; it must be 0 or more")

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(f"site-{number}" for number in range(1, self.sites + 1))


@dataclass(frozen=True)
class Dataset:
    """A dataset before it is partitioned: arrays with a row for each image, checked as a stack."""

    arrays: Arrays
    stack: Stack
    variable: str

    @property
    def labels(self) -> NDArray[np.float64]:
        """Return each patient's label."""
        return np.array([values[self.variable] for values in self.stack.values.values()])


def read_dataset(path: Path, variable: str) -> Dataset:
    """Read a stack, or a MedMNIST file, whose parts are concatenated. Raises `BadImage`."""
    arrays = read_arrays(path)
    if f"{MEDMNIST[0]}_{IMAGE_ARRAY}" in arrays:
        arrays = _merge(arrays, variable, path)
    stack = stack_of(arrays, (variable,), path)
    if any(np.isnan(values[variable]) for values in stack.values.values()):
        raise BadImage(f"{path}: '{variable}' is missing for some; each patient must have a label.")
    if len({values[variable] for values in stack.values.values()}) < 2:
        raise BadImage(f"{path}: '{variable}' is the same for all; sites must differ in something.")
    per_image = {name: a for name, a in arrays.items() if a.shape[:1] == stack.images.shape[:1]}
    return Dataset(per_image, stack, variable)


def assign(labels: NDArray[np.float64], plan: PartitionPlan) -> tuple[NDArray[np.int64], ...]:
    """Assign each patient to exactly one site; the sites' sizes differ by one patient at most.

    Each site draws its class proportions from a Dirichlet distribution, again where they would give
    a site fewer than `plan.least` of a class; then the sites take turns, each drawing a class that
    has a patient left. Raises `BadSite` where a site gets too few. Hsu et al. 2019.
    """
    draw = np.random.default_rng(seed_for(plan.seed, "partition"))
    classes, kinds = np.unique(labels, return_inverse=True)
    chosen = draw.permutation(len(labels))[: _wanted(len(labels), plan)]
    by_class = [[int(i) for i in chosen if kinds[i] == kind] for kind in range(len(classes))]
    proportions = _proportions(np.bincount(kinds), len(chosen) // plan.sites, plan, draw)
    by_site = _take_turns(by_class, proportions, draw)
    assignments = tuple(np.sort(np.array(patients, np.int64)) for patients in by_site)
    _check_least(labels, assignments, plan)
    return assignments


def counts(
    labels: NDArray[np.float64], assignments: Sequence[NDArray[np.int64]]
) -> list[dict[str, int]]:
    """Count the patients of each class at each site."""
    classes = np.unique(labels)
    return [
        {f"{c:g}": int(np.sum(labels[patients] == c)) for c in classes} for patients in assignments
    ]


def write_sites(
    dataset: Dataset, assignments: Sequence[NDArray[np.int64]], plan: PartitionPlan, folder: Path
) -> None:
    """Write each site's stack, folder/NAME/images.npz, and its site file, folder/NAME.toml.

    Raises `BadFolder` where the folder holds something already.
    """
    make_output_folder(folder)
    if any(folder.iterdir()):
        raise BadFolder(f"{folder}: is not empty; give a new folder with --out.")
    rows_by_patient = tuple(dataset.stack.rows.items())
    for name, assigned in zip(plan.names, assignments, strict=True):
        chosen = [
            (patient, row) for patient, rows in _pick(rows_by_patient, assigned) for row in rows
        ]
        arrays = {key: array[[row for _, row in chosen]] for key, array in dataset.arrays.items()}
        arrays[PATIENT_ROW] = np.array([patient for patient, _ in chosen])
        (folder / name).mkdir(parents=True)
        np.savez_compressed(folder / name / "images.npz", **arrays)  # pyright: ignore[reportArgumentType]
        text = f'name = "{name}"\ndata = "{name}/images.npz"\n'
        (folder / f"{name}.toml").write_text(text, "utf-8")


def _pick(items: Sequence[_T], where: NDArray[np.int64]) -> list[_T]:
    return [items[int(index)] for index in where]


def _merge(arrays: Arrays, variable: str, path: Path) -> dict[str, NDArray[Any]]:
    """Concatenate the parts of a MedMNIST file: the study splits patients itself."""
    names = [f"{part}_{kind}" for kind in (IMAGE_ARRAY, "labels") for part in MEDMNIST]
    if missing := [name for name in names if name not in arrays]:
        raise BadImage(f"{path}: there is no array '{missing[0]}'; a MedMNIST file has all six.")
    images, labels = (
        np.concatenate([arrays[n] for n in parts]) for parts in (names[:3], names[3:])
    )
    if labels.ndim != 2 or labels.shape[1] != 1:
        raise BadImage(
            f"{path}: the labels have shape {labels.shape}; each image must have one, (N, 1)."
        )
    return {IMAGE_ARRAY: images, variable: labels[:, 0]}


def _wanted(available: int, plan: PartitionPlan) -> int:
    wanted = plan.sites * plan.cases or available
    if wanted > available:
        raise BadStudy(
            f"--cases is {plan.cases}; {plan.sites} sites then need {wanted} patients, "
            f"but there are {available}"
        )
    return wanted


def _proportions(
    sizes: NDArray[np.int64], size: int, plan: PartitionPlan, draw: np.random.Generator
) -> NDArray[np.float64]:
    """Draw each site's class proportions, (site, class), until all sites may expect enough."""
    natural = sizes / sizes.sum()
    if plan.alpha == inf:
        return np.tile(natural, (plan.sites, 1))
    drawn = draw.dirichlet(plan.alpha * natural, (TRIES, plan.sites))
    # Three standard deviations of a count above the least: chance seldom takes a site below it.
    enough = (drawn * size >= plan.least + 3 * sqrt(plan.least)).all(axis=(1, 2))
    return drawn[int(enough.argmax())]


def _take_turns(
    by_class: Sequence[list[int]], proportions: NDArray[np.float64], draw: np.random.Generator
) -> list[list[int]]:
    """Let the sites take patients in turn until none is left in any class."""
    by_site: list[list[int]] = [[] for _ in proportions]
    for turn in range(sum(len(patients) for patients in by_class)):
        site = turn % len(by_site)
        left = np.array([float(len(patients) > 0) for patients in by_class])
        # A site that would draw none of the remaining classes draws each with equal probability.
        wanted = left * proportions[site] if (left * proportions[site]).any() else left
        by_site[site].append(
            by_class[int(draw.choice(len(by_class), p=wanted / wanted.sum()))].pop()
        )
    return by_site


def _check_least(
    labels: NDArray[np.float64], assignments: Sequence[NDArray[np.int64]], plan: PartitionPlan
) -> None:
    for name, classes in zip(plan.names, counts(labels, assignments), strict=True):
        for label, count in classes.items():
            if count < plan.least:
                raise BadSite(
                    f"{name} would get {count} of class {label}, fewer than --least {plan.least}; "
                    "give another --seed, a larger --alpha, fewer --sites or a smaller --least."
                )
