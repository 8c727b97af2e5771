"""A site's data as a torch dataset: its items are split by patient as a folder of images is."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from numbers import Integral
from pathlib import Path
from typing import Any, Protocol, cast

import numpy as np
from torch import Tensor

from grandrounds.core.errors import BadInput, BadSite, RunFailed
from grandrounds.core.sentence import phrase
from grandrounds.core.weights import digest
from grandrounds.data.availability import needs
from grandrounds.data.cohort import SPLITS, Cohort, Session, SplitName, split_patients
from grandrounds.data.elements import Fractions

_NO_IMAGE = np.zeros((1, 1, 0, 0), np.float32)


class PatientDataset(Protocol):
    """A torch dataset that also names patients: `patients[i]` is the ID of the patient of item i.

    An item maps names to tensors without a batch axis, the same at each reading: what is drawn in
    training is drawn by the task. Items of one patient are always in one split. IDs stay at the
    site.
    """

    @property
    def patients(self) -> Sequence[str]:
        """Return the ID of each item's patient, as many as there are items."""
        ...

    def __len__(self) -> int: ...
    def __getitem__(self, index: int) -> Mapping[str, Tensor]: ...


class ItemFailed(RunFailed):
    """An item of a dataset cannot be read."""


@dataclass(frozen=True)
class DatasetItem(Session):
    """An item by its number in the dataset, which reads it anew each time; it holds no image.

    `shapes` are those of its tensors, without a batch axis.
    """

    index: int = 0
    shapes: tuple[tuple[int, ...], ...] = ()


@dataclass(frozen=True)
class DatasetCohort(Cohort):
    """The items of a site's dataset, split by patient; its sessions are `DatasetItem`s."""

    dataset: PatientDataset

    def read(self, item: DatasetItem) -> Mapping[str, Tensor]:
        """Read an item. Raises `ItemFailed`."""
        return read_item(self.dataset, item.index)


def read_item(dataset: PatientDataset, index: int) -> Mapping[str, Tensor]:
    """Read one item of a dataset. Raises `ItemFailed`."""
    try:
        return dataset[index]
    except Exception as error:
        raise ItemFailed(
            f"item {index} cannot be read ({type(error).__name__}: {error})",
            safe=phrase("item {index} of its dataset cannot be read", index=index),
        ) from error


def open_folder(
    site: str, data: Path, task: str, opens: Callable[[Path], PatientDataset]
) -> PatientDataset:
    """Open a site's folder by the function `dataset` of a task. Raises `BadSite`."""
    if not data.exists():
        raise BadSite(
            f"site '{site}': {data} does not exist; data in its site file is what {task} opens.",
            safe=phrase("the data that its site file names do not exist"),
        )
    try:
        return opens(data)
    except BadInput:
        raise
    except Exception as error:
        raise BadSite(
            f"site '{site}': {task} cannot open {data} ({type(error).__name__}: {error})",
            safe=phrase("the study's task cannot open its data"),
        ) from error


def dataset_cohort(
    site: str,
    dataset: PatientDataset,
    fractions: Fractions,
    *,
    like: Mapping[str, Tensor],
    tasks: Sequence[str],
    prepared: Callable[[int, int], None],
) -> DatasetCohort:
    """Read each item of a dataset once, hold it against a batch of one, and split by patient.

    `prepared` is told how many items of all were read. Raises `BadSite`, which names the site and
    the item.
    """
    try:
        patients = _patients(site, dataset)
    except BadInput:
        raise
    except Exception as error:
        raise BadSite(
            f"site '{site}': {type(dataset).__name__} cannot say how many items of whom it has "
            f"({type(error).__name__}: {error})",
            safe=phrase("its dataset cannot say how many items of whom it has"),
        ) from error
    split_of = split_patients(patients, fractions, site=site)
    contents = tuple(dict.fromkeys(name for task in tasks for name in needs(task)))
    splits: dict[SplitName, list[DatasetItem]] = {split: [] for split in SPLITS}
    for index, patient in enumerate(patients):
        prepared(index, len(patients))
        tensors = _checked(site, dataset, index, like)
        fingerprint = digest(tensors)
        item = DatasetItem(
            *(patient, f"{index:09d}", contents, _NO_IMAGE),
            digest=fingerprint,
            prints=(fingerprint,),
            index=index,
            shapes=tuple(tuple(tensors[name].shape) for name in like),
        )
        splits[split_of[patient]].append(item)
    _check_repeats(site, dataset, splits)
    prepared(len(patients), len(patients))
    return DatasetCohort(site, {split: tuple(items) for split, items in splits.items()}, dataset)


def _patients(site: str, dataset: PatientDataset) -> list[str]:
    """Return the patient of each item. Raises `BadSite`."""
    kind = type(dataset).__name__
    if not hasattr(dataset, "__len__") or not hasattr(dataset, "__getitem__"):
        raise BadSite(
            f"site '{site}': {kind} has no length or no items by number; a dataset has __len__ and "
            "__getitem__.",
            safe=phrase("its data are no dataset with a length"),
        )
    named = cast(Sequence[object] | None, getattr(dataset, "patients", None))
    if named is None:
        raise BadSite(
            f"site '{site}': {kind} does not name patients; a dataset needs patients, one ID for "
            "each item, so that no patient trains and is tested.",
            safe=phrase("its dataset does not name the patient of each item"),
        )
    if len(named) != len(dataset):
        raise BadSite(
            f"site '{site}': {kind} names {len(named)} patients for {len(dataset)} items; "
            "patients[i] must be the ID of the patient of item i.",
            safe=phrase(
                "its dataset names {patients} patients for {items} items, and must name one for "
                "each",
                patients=len(named),
                items=len(dataset),
            ),
        )
    if not len(dataset):
        raise BadSite(f"site '{site}': {kind} has no item.", safe=phrase("its dataset has no item"))
    return [_patient(site, index, found) for index, found in enumerate(named)]


def _patient(site: str, index: int, found: object) -> str:
    if not isinstance(found, str | Integral) or not str(found).strip():
        raise BadSite(
            f"site '{site}', item {index}: its patient is {found!r}; an ID is a word or a whole "
            "number.",
            safe=phrase("the patient of item {index} of its dataset has no ID", index=index),
        )
    return str(found)


def _checked(
    site: str, dataset: PatientDataset, index: int, like: Mapping[str, Tensor]
) -> Mapping[str, Tensor]:
    """Read an item that is as the task's blank batch. Raises `BadSite`."""
    try:
        item = read_item(dataset, index)
    except ItemFailed as error:
        raise BadSite(f"site '{site}': {error}", safe=error.safe) from error
    if problem := _problem(item, like):
        raise BadSite(
            f"site '{site}', item {index}: {problem}",
            safe=phrase(
                "item {index} of its dataset is not as the task's blank batch", index=index
            ),
        )
    return item


def _problem(item: object, like: Mapping[str, Tensor]) -> str:
    """Say how an item differs from the task's blank batch without its first axis; empty if not."""
    names = ", ".join(like)
    if not isinstance(item, Mapping):
        return f"it is of type {type(item).__name__}; an item maps names to tensors ({names})"
    found = cast(Mapping[str, Any], item)
    if found.keys() != like.keys():
        return f"it has {', '.join(map(str, found)) or 'nothing'}; blank() has {names}"
    for name, blank in like.items():
        tensor = found[name]
        if not isinstance(tensor, Tensor):
            return f"{name} is of type {type(tensor).__name__}; it must be a tensor"
        if tensor.ndim != blank.ndim - 1:
            return (
                f"{name} has the shape {tuple(tensor.shape)}; blank() has {tuple(blank.shape)}, "
                f"so an item has {blank.ndim - 1} axes there, without the batch's"
            )
        if tensor.is_floating_point() != blank.is_floating_point():
            return f"{name} is {tensor.dtype}; blank() has {blank.dtype}"
    return ""


def _check_repeats(
    site: str, dataset: PatientDataset, splits: Mapping[SplitName, Sequence[DatasetItem]]
) -> None:
    """Refuse a dataset whose first item differs at another reading."""
    first = next(item for items in splits.values() for item in items)
    if digest(read_item(dataset, first.index)) != first.digest:
        raise BadSite(
            f"site '{site}', item {first.index}: it differs each time that it is read; a dataset "
            "gives what there is, and augment() of the task draws.",
            safe=phrase("an item of its dataset differs each time that it is read"),
        )
