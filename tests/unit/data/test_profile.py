"""What a site's training images look like: quantiles over patients, and what is unlike them."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from grandrounds.core.errors import BadFolder
from grandrounds.data.cohort import Cohort, Session
from grandrounds.data.elements import Elements
from grandrounds.data.profile import (
    PROFILE_FLOOR,
    DataProfile,
    ImageLook,
    look_of,
    make_profile,
    read_profile,
    save_profile,
)
from grandrounds.data.simulation.simulate import Scanner, simulate_session

PIXEL = (3.5, 3.5)
ELEMENTS = Elements(("T1w", "T2w"), (64, 64), PIXEL)
FIRST_TEST = 8


def patient(number: int) -> Session:
    return simulate_session(1, "oak", f"sub-{number:03d}", Scanner(), ELEMENTS, slices=6)


@pytest.fixture(scope="module")
def sessions() -> list[Session]:
    return [patient(number) for number in range(FIRST_TEST + 2)]


@pytest.fixture(scope="module")
def profile(sessions: list[Session]) -> DataProfile:
    return make_profile([cohort(sessions[:FIRST_TEST])], PIXEL)


def cohort(sessions: list[Session]) -> Cohort:
    return Cohort("oak", {"train": tuple(sessions), "validation": (), "test": ()})


def seen(session: Session, contrast: str) -> ImageLook:
    look = look_of(session.images[:, session.contrasts.index(contrast)], PIXEL)
    assert look
    return look


def test_the_site_s_own_test_patients_are_as_it_knows_them(
    sessions: list[Session], profile: DataProfile
):
    for session in sessions[FIRST_TEST:]:
        for contrast in ELEMENTS.contrasts:
            assert profile.objections(contrast, seen(session, contrast), session.spacing) == ()


def test_a_contrast_under_another_s_name_is_named(sessions: list[Session], profile: DataProfile):
    [reason] = profile.objections("T1w", seen(sessions[-1], "T2w"))
    assert reason.startswith("its grey values are 0.")
    assert "would be right; it looks like the site's T2w (0.0" in reason


def test_a_contrast_of_too_few_patients_has_no_profile(sessions: list[Session]):
    fewer = make_profile([cohort(sessions[: PROFILE_FLOOR - 1])], PIXEL)
    assert fewer == DataProfile()


def test_two_sessions_of_a_patient_are_one_person(sessions: list[Session]):
    twice = [replace(each, session=f"ses-{n}") for each in sessions[:3] for n in (1, 2)]
    assert make_profile([cohort(twice)], PIXEL) == DataProfile()


def test_only_training_patients_count(sessions: list[Session]):
    tested = Cohort("oak", {"train": (), "validation": (), "test": tuple(sessions)})
    assert make_profile([tested], PIXEL) == DataProfile()


@pytest.mark.parametrize(
    ("spacing", "sentence"),
    [
        (
            (40.0, 3.5, 3.5),
            "its slices are 40 mm apart, and those that the model has seen 9.6 mm; ",
        ),
        ((1.0, 3.5, 3.5), "from 4.8 to 19.2 mm would be right"),
        (
            (9.6, 9.0, 3.5),
            "its pixels are 9 mm long, and those that the model has seen 3.5 mm; up ",
        ),
        ((9.6, 0.5, 0.5), ""),  # fine pixels become the study's
    ],
)
def test_a_spacing_is_compared_with_the_patients(
    spacing: tuple[float, float, float],
    sentence: str,
    sessions: list[Session],
    profile: DataProfile,
):
    found = profile.objections("T1w", seen(sessions[-1], "T1w"), spacing)
    assert len(found) == bool(sentence)
    assert sentence in "".join(found)


def test_another_field_of_view_is_named(sessions: list[Session], profile: DataProfile):
    small = replace(seen(sessions[-1], "T1w"), area=40.0)
    [reason] = profile.objections("T1w", small)
    assert reason.startswith("the largest cross-section that it shows has 40 cm2, and those that")


def test_an_image_of_nothing_has_no_look():
    assert look_of(np.zeros((3, 8, 8), np.float32), PIXEL) is None


def test_a_profile_is_read_as_it_was_written_and_its_owner_alone_can(
    profile: DataProfile, tmp_path: Path
):
    path = tmp_path / "alder" / "profile.json"
    save_profile(path, profile)
    assert read_profile(path) == profile
    assert path.stat().st_mode & 0o777 == 0o600
    assert "sub-" not in path.read_text()


@pytest.mark.parametrize(
    "change",
    [
        lambda each: each["contrasts"]["T1w"]["look"].update(brightness=[0.5]),
        lambda each: each["contrasts"]["T1w"].update(spread=float("nan")),
        lambda each: each["contrasts"]["T1w"].update(area=[]),
        lambda each: each["contrasts"].update(T1w="all"),
        lambda each: each.pop("version"),
    ],
)
def test_a_damaged_profile_is_refused(change, profile: DataProfile, tmp_path: Path):
    path = tmp_path / "profile.json"
    save_profile(path, profile)
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))
    with pytest.raises(BadFolder, match="is no profile of training data"):
        read_profile(path)


def test_a_profile_of_another_version_is_none(tmp_path: Path):
    path = tmp_path / "profile.json"
    path.write_text('{"version": 0}')
    assert read_profile(path) is None
    assert read_profile(tmp_path / "absent.json") is None
