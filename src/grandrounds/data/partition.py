"""One public dataset dealt to pseudo-sites, whose label proportions follow a Dirichlet draw."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import inf, sqrt
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from grandrounds.core.errors import BadFolder, BadImage, BadSite, BadStudy
from grandrounds.core.seeds import seed_for
from grandrounds.data.stack import IMAGE_ARRAY, PATIENT_ROW, Arrays, Stack, read_arrays, stack_of

_T = TypeVar("_T")
TRIES = 10_000  # draws of the proportions, of which the first that may do is taken
MEDMNIST = ("train", "val", "test")  # parts of a MedMNIST file; Yang et al. 2023


@dataclass(frozen=True)
class PartitionPlan:
    """How patients are dealt: to how many sites, and how unlike these are.

    `alpha` is the concentration of the Dirichlet distribution about the dataset's own proportions;
    infinity gives every site these. `cases` limits the patients of a site (0: all there are);
    `least` is the fewest of each class that a site may have.
    """

    sites: int
    alpha: float
    seed: int
    least: int = 10
    cases: int = 0

    def __post_init__(self) -> None:
        """Check what the types cannot say."""
        if self.sites < 2:
            raise BadStudy(f"--sites is {self.sites}; it must be 2 or more")
        if not self.alpha > 0:
            raise BadStudy(f"--alpha is {self.alpha:g}; it must be above 0 (inf: all sites alike)")
        for name, value in {"least": self.least, "cases": self.cases}.items():
            if value < 0:
                raise BadStudy(f"--{name} is {value}; it must be 0 or more")

    @property
    def names(self) -> tuple[str, ...]:
        """Name the sites."""
        return tuple(f"site-{number}" for number in range(1, self.sites + 1))


@dataclass(frozen=True)
class Dataset:
    """A dataset before it is dealt: its arrays, one row for each image, checked as a stack."""

    arrays: Arrays
    stack: Stack
    variable: str

    @property
    def labels(self) -> NDArray[np.float64]:
        """Give each patient's label."""
        return np.array([values[self.variable] for values in self.stack.values.values()])


def read_dataset(path: Path, variable: str) -> Dataset:
    """Read a stack, or a MedMNIST file, whose parts are laid together. Raises `BadImage`."""
    arrays = read_arrays(path)
    if f"{MEDMNIST[0]}_{IMAGE_ARRAY}" in arrays:
        arrays = _merged(arrays, variable, path)
    stack = stack_of(arrays, (variable,), path)
    if any(np.isnan(values[variable]) for values in stack.values.values()):
        raise BadImage(f"{path}: '{variable}' is missing for some; each patient must have a label.")
    if len({values[variable] for values in stack.values.values()}) < 2:
        raise BadImage(f"{path}: '{variable}' is the same for all; sites must differ in something.")
    own = {name: a for name, a in arrays.items() if a.shape[:1] == stack.images.shape[:1]}
    return Dataset(own, stack, variable)


def assign(labels: NDArray[np.float64], plan: PartitionPlan) -> tuple[NDArray[np.int64], ...]:
    """Deal patients, each to exactly one site; the sites are of equal size, but for one patient.

    Each site draws its class proportions from a Dirichlet distribution, anew where they would give
    a site fewer than `plan.least` of a class; then the sites take turns, each drawing a class of
    which a patient is left. Raises `BadSite` where a site gets too few. Hsu et al. 2019.
    """
    draw = np.random.default_rng(seed_for(plan.seed, "partition"))
    classes, kinds = np.unique(labels, return_inverse=True)
    chosen = draw.permutation(len(labels))[: _wanted(len(labels), plan)]
    piles = [[int(i) for i in chosen if kinds[i] == kind] for kind in range(len(classes))]
    likely = _proportions(np.bincount(kinds), len(chosen) // plan.sites, plan, draw)
    hands = _taken_turns(piles, likely, draw)
    dealt = tuple(np.sort(np.array(hand, np.int64)) for hand in hands)
    _check_least(labels, dealt, plan)
    return dealt


def counts(labels: NDArray[np.float64], dealt: Sequence[NDArray[np.int64]]) -> list[dict[str, int]]:
    """Count the patients of each class at each site."""
    classes = np.unique(labels)
    return [{f"{c:g}": int(np.sum(labels[hand] == c)) for c in classes} for hand in dealt]


def write_sites(
    pool: Dataset, dealt: Sequence[NDArray[np.int64]], plan: PartitionPlan, folder: Path
) -> None:
    """Write each site's stack, folder/NAME/images.npz, and its site file, folder/NAME.toml.

    Raises `BadFolder` where the folder holds something already.
    """
    if folder.exists() and any(folder.iterdir()):
        raise BadFolder(f"{folder}: is not empty; give a new folder with --out.")
    patients = tuple(pool.stack.rows.items())
    for name, hand in zip(plan.names, dealt, strict=True):
        own = [(who, row) for who, rows in _picked(patients, hand) for row in rows]
        arrays = {key: array[[row for _, row in own]] for key, array in pool.arrays.items()}
        arrays[PATIENT_ROW] = np.array([who for who, _ in own])
        (folder / name).mkdir(parents=True)
        np.savez_compressed(folder / name / "images.npz", **arrays)  # pyright: ignore[reportArgumentType]
        text = f'name = "{name}"\ndata = "{name}/images.npz"\n'
        (folder / f"{name}.toml").write_text(text, "utf-8")


def _picked(items: Sequence[_T], where: NDArray[np.int64]) -> list[_T]:
    return [items[int(index)] for index in where]


def _merged(arrays: Arrays, variable: str, path: Path) -> dict[str, NDArray[Any]]:
    """Lay the parts of a MedMNIST file together: the study splits patients itself."""
    names = [f"{part}_{kind}" for kind in (IMAGE_ARRAY, "labels") for part in MEDMNIST]
    if missing := [name for name in names if name not in arrays]:
        raise BadImage(f"{path}: there is no array '{missing[0]}'; a MedMNIST file has all six.")
    images, labels = (np.concatenate([arrays[n] for n in own]) for own in (names[:3], names[3:]))
    if labels.ndim != 2 or labels.shape[1] != 1:
        raise BadImage(
            f"{path}: the labels have shape {labels.shape}; each image must have one, (N, 1)."
        )
    return {IMAGE_ARRAY: images, variable: labels[:, 0]}


def _wanted(there: int, plan: PartitionPlan) -> int:
    wanted = plan.sites * plan.cases or there
    if wanted > there:
        raise BadStudy(
            f"--cases is {plan.cases}; {plan.sites} sites then need {wanted} patients, "
            f"but there are {there}"
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


def _taken_turns(
    piles: Sequence[list[int]], likely: NDArray[np.float64], draw: np.random.Generator
) -> list[list[int]]:
    """Let the sites take patients from the piles of the classes until all are empty."""
    hands: list[list[int]] = [[] for _ in likely]
    for turn in range(sum(len(pile) for pile in piles)):
        site = turn % len(hands)
        left = np.array([float(len(pile) > 0) for pile in piles])
        # Where only classes are left that the site would never draw, all of these are alike.
        wanted = left * likely[site] if (left * likely[site]).any() else left
        hands[site].append(piles[int(draw.choice(len(piles), p=wanted / wanted.sum()))].pop())
    return hands


def _check_least(
    labels: NDArray[np.float64], dealt: Sequence[NDArray[np.int64]], plan: PartitionPlan
) -> None:
    for name, found in zip(plan.names, counts(labels, dealt), strict=True):
        for label, count in found.items():
            if count < plan.least:
                raise BadSite(
                    f"{name} would get {count} of class {label}, fewer than --least {plan.least}; "
                    "give another --seed, a larger --alpha, fewer --sites or a smaller --least."
                )
