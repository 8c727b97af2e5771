from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from grandrounds.core.errors import BadSite
from grandrounds.data.cohort import SPLITS, split_patients
from grandrounds.data.elements import Fractions


def counts(number: int, fractions: Fractions) -> tuple[int, ...]:
    patients = [f"sub-{index:03}" for index in range(number)]
    found = Counter(split_patients(patients, fractions, site="alder").values())
    return tuple(found[split] for split in SPLITS)


@pytest.mark.parametrize(
    ("number", "fractions", "expected"),
    [
        (10, Fractions(0.7, 0.1, 0.2), (7, 1, 2)),
        (100, Fractions(0.7, 0.1, 0.2), (70, 10, 20)),
        (5, Fractions(0.7, 0.1, 0.2), (3, 1, 1)),
        (2, Fractions(0.7, 0.1, 0.2), (1, 0, 1)),
        (3, Fractions(0.9, 0.1, 0.0), (2, 0, 1)),
        (10, Fractions(0.8, 0.0, 0.2), (8, 0, 2)),
        (2, Fractions(0.1, 0.8, 0.1), (1, 0, 1)),
        (4, Fractions(0.0, 0.0, 1.0), (1, 0, 3)),
    ],
)
def test_patients_are_dealt_by_largest_remainder_with_one_to_train_and_one_to_test(
    number: int, fractions: Fractions, expected: tuple[int, ...]
):
    assert counts(number, fractions) == expected


def test_a_known_split_never_changes():
    split = split_patients(["sub-01", "sub-02", "sub-03", "sub-04"], Fractions(), site="alder")
    assert split == {
        "sub-01": "train",
        "sub-02": "train",
        "sub-03": "test",
        "sub-04": "train",
    }


def test_the_same_patients_fall_differently_at_another_site():
    patients = [f"sub-{index:02}" for index in range(20)]
    at_alder = split_patients(patients, Fractions(), site="alder")
    assert at_alder != split_patients(patients, Fractions(), site="birch")


@pytest.mark.parametrize(
    ("patients", "found"), [(["sub-01", "sub-01"], "1 patient"), ([], "0 patients")]
)
def test_fewer_than_two_patients_cannot_be_split(patients: list[str], found: str):
    with pytest.raises(BadSite) as caught:
        split_patients(patients, Fractions(), site="alder")
    assert str(caught.value) == (
        f"site 'alder': {found} cannot be split into train and test; "
        "a site needs at least 2 patients."
    )


SESSIONS = st.lists(
    st.tuples(st.integers(0, 30).map("sub-{:02}".format), st.integers(1, 3)), min_size=1
)


@st.composite
def all_fractions(draw: st.DrawFn) -> Fractions:
    train = draw(st.integers(0, 10))
    validation = draw(st.integers(0, 10 - train))
    return Fractions(train / 10, validation / 10, (10 - train - validation) / 10)


@given(SESSIONS, all_fractions())
def test_no_patient_is_in_two_splits_whatever_the_sessions_and_their_order(
    sessions: list[tuple[str, int]], fractions: Fractions
):
    patients = [patient for patient, _ in sessions]
    if len(set(patients)) < 2:
        return
    split = split_patients(patients, fractions, site="alder")
    assert set(split) == set(patients)
    assert {"train", "test"} <= set(split.values())
    assert split == split_patients(reversed(patients), fractions, site="alder")
    assert split == split_patients(sorted(set(patients)), fractions, site="alder")


def test_another_salt_deals_the_patients_anew_and_the_same_again():
    patients = [f"sub-{number:02d}" for number in range(40)]
    dealt = [split_patients(patients, Fractions(salt=s), site="alder") for s in ("", "2", "2")]
    assert dealt[0] != dealt[1]
    assert dealt[1] == dealt[2]
