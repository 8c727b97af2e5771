"""A site's dataset is split by patient, and held against a batch of the task, item by item."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from grandrounds.core.errors import BadImage, BadSite
from grandrounds.data.cohort import SPLITS, data_digest, pseudonyms_of, split_patients
from grandrounds.data.dataset import DatasetCohort, dataset_cohort, open_folder
from grandrounds.data.elements import Fractions
from tests.helpers.own_tasks import Points

LIKE = {"image": torch.zeros(1, 2), "value": torch.zeros(1, 1)}
NAMES = [f"MRN-{n // 2}" for n in range(12)]


def cohort_of(dataset: Any, like: Mapping[str, Tensor] = LIKE, **fractions: Any) -> DatasetCohort:
    return dataset_cohort(
        "oak",
        dataset,
        Fractions(**fractions),
        like=like,
        tasks=["nodule"],
        prepared=lambda done, total: None,
    )


def test_items_are_split_by_patient_as_sessions_are():
    cohort = cohort_of(Points(NAMES))
    expected = split_patients(NAMES, Fractions(), site="oak")
    for split in SPLITS:
        assert {item.patient for item in cohort.splits[split]} == {
            patient for patient, found in expected.items() if found == split
        }
    assert sorted(item.session for item in cohort) == [f"{n:09d}" for n in range(12)]


def test_another_salt_deals_the_patients_anew():
    first, other = cohort_of(Points(NAMES)), cohort_of(Points(NAMES), salt="2")
    assert first.patients("test") != other.patients("test")


def test_a_pseudonym_says_nothing_of_a_name():
    assert set(pseudonyms_of(cohort_of(Points(NAMES))).values()) == {
        f"p{n:03d}" for n in range(1, 7)
    }


def test_numbers_are_ids_too():
    for numbers in ([1, 1, 2, 2], np.array([1, 1, 2, 2])):
        assert {item.patient for item in cohort_of(Points(numbers))} == {"1", "2"}  # pyright: ignore[reportArgumentType]


def test_the_digest_is_of_what_items_hold_and_of_whom():
    def found(patients: Sequence[str], seed: int = 0) -> str:
        return data_digest([cohort_of(Points(patients, seed))])

    assert found(NAMES) == found(NAMES)
    assert found(NAMES) != found(NAMES, seed=1)
    assert found(NAMES) != found([*NAMES[:-1], "MRN-0"])


def test_whoever_waits_is_told_how_many_items_were_read():
    told: list[tuple[int, int]] = []
    dataset_cohort(
        *("oak", Points(NAMES), Fractions()),
        like=LIKE,
        tasks=["nodule"],
        prepared=lambda done, total: told.append((done, total)),
    )
    assert told == [(n, 12) for n in range(13)]


@dataclass
class Odd(Points):
    """Points whose fourth item is another one."""

    odd: Any = None

    def __getitem__(self, index: int) -> Any:
        if index != 3:
            return super().__getitem__(index)
        return self.odd() if callable(self.odd) else self.odd


def fail() -> None:
    raise KeyError("image of MRN-1")


def drawn() -> Mapping[str, Tensor]:
    return {"image": torch.rand(2), "value": torch.zeros(1)}


GOOD = {"image": torch.zeros(2), "value": torch.zeros(1)}
ODD: list[tuple[object, str]] = [
    (fail, r"item 3 cannot be read \(KeyError: 'image of MRN-1'\)"),
    ([1, 2], "item 3: it is of type list; an item maps names to tensors"),
    ({"image": torch.zeros(2)}, r"item 3: it has image; blank\(\) has image, value"),
    ({}, r"item 3: it has nothing; blank\(\) has image, value"),
    ({**GOOD, "value": 1.0}, "item 3: value is of type float; it must be a tensor"),
    ({**GOOD, "image": np.zeros(2)}, "item 3: image is of type ndarray; it must be a tensor"),
    (
        {**GOOD, "image": torch.zeros(1, 2)},
        r"item 3: image has the shape \(1, 2\); blank\(\) has \(1, 2\), so an item has 1 axes",
    ),
    (
        {**GOOD, "value": torch.zeros(1).long()},
        "item 3: value is torch.int64; blank.. has torch.fl",
    ),
]


@pytest.mark.parametrize(("odd", "sentence"), ODD, ids=[sentence[:24] for _, sentence in ODD])
def test_an_odd_item_is_named_with_its_site(odd: object, sentence: str):
    with pytest.raises(BadSite, match=f"^site 'oak',? ?:? ?{sentence}") as refused:
        cohort_of(Odd(NAMES, odd=odd))
    assert refused.value.safe is not None
    told = refused.value.safe.told(frozenset())
    assert told is not None
    assert told.startswith("item 3 of its dataset")
    assert "MRN" not in told


def test_items_of_other_sizes_are_as_they_should_be():
    assert cohort_of(Odd(NAMES, odd={**GOOD, "image": torch.zeros(9)})).splits["test"]


class Drawing(Points):
    """A dataset that augments by itself."""

    def __getitem__(self, index: int) -> Mapping[str, Tensor]:
        return drawn()


def test_a_dataset_that_draws_is_refused():
    with pytest.raises(
        BadSite, match=r"site 'oak', item \d+: it differs each time that it is read"
    ):
        cohort_of(Drawing(NAMES))


class Long(Points):
    """A dataset of an item more than it has patients."""

    def __len__(self) -> int:
        return len(self.points) + 1


class Shut(Points):
    """A dataset that cannot be counted."""

    def __len__(self) -> int:
        raise OSError("MRN.csv is closed")


class Nameless:
    """A dataset without patients."""

    def __len__(self) -> int:
        return 3

    def __getitem__(self, index: int) -> Mapping[str, Tensor]:
        return GOOD


@pytest.mark.parametrize(
    ("dataset", "sentence"),
    [
        (Long(NAMES), "Long names 12 patients for 13 items"),
        (Shut(NAMES), r"Shut cannot say how many items of whom it has \(OSError: MRN\.csv is clo"),
        (Nameless(), "Nameless does not name patients; a dataset needs patients"),
        (iter([GOOD]), "list_iterator has no length or no items by number"),
        (Points([]), "Points has no item"),
        (Points(["MRN-1", " "]), "item 1: its patient is ' '; an ID is a word or a whole number"),
        (Points(["MRN-1", None]), "item 1: its patient is None"),  # pyright: ignore[reportArgumentType]
        (Points(["MRN-1"] * 4), "1 patient cannot be split into train and test"),
    ],
)
def test_a_dataset_that_names_no_patients_is_refused(dataset: object, sentence: str):
    with pytest.raises(BadSite, match=f"^site 'oak',?:? {sentence}") as refused:
        cohort_of(dataset)
    assert refused.value.safe is not None
    assert "MRN" not in (refused.value.safe.told(frozenset()) or "")


def test_a_folder_that_cannot_be_opened_is_named(tmp_path: Path):
    def broken(folder: Path) -> Points:
        raise OSError(f"{folder / 'MRN-1.npz'}: damaged")

    def refusing(folder: Path) -> Points:
        raise BadImage("said by the task")

    with pytest.raises(BadSite, match=r"site 'oak': .*elsewhere does not exist"):
        open_folder("oak", tmp_path / "elsewhere", "a:B", broken)
    with pytest.raises(
        BadSite, match=r"site 'oak': a:B cannot open .*MRN-1\.npz: damaged"
    ) as refused:
        open_folder("oak", tmp_path, "a:B", broken)
    assert str(refused.value.safe) == "the study's task cannot open its data"
    with pytest.raises(BadImage, match="said by the task"):
        open_folder("oak", tmp_path, "a:B", refusing)
