"""Common data elements that no data can meet are refused, and those left out change nothing."""

import pytest

from grandrounds.core.errors import BadStudy
from grandrounds.study.file import fingerprint, to_table
from tests.helpers.federation import tiny

REFUSED = {
    "elements.floor=2": r"elements.floor is 2; it must be from 3 \(of two people each knows the",
    "elements.floor=1000": "elements.floor is 1000",
    "elements.floor=5.5": "elements.floor = 5.5 is wrong",
    "elements.spacing_through=[6.0, 1.0]": r"spacing_through is \[6.0, 1.0\]; it is the lowest and",
    "elements.spacing_in_plane=[0.0, 1.0]": "spacing_in_plane",
    "elements.age=[18, 300]": "elements.age is",
    "elements.field_strengths=[15000.0]": "field_strengths has 15000; it is in tesla",
    'elements.orientation="oblique"': "elements.orientation = 'oblique' is wrong",
    "elements.labels={T1w = {core = 1}}": "'T1w' is a contrast or a variable",
    "elements.labels={lesion = {core = 1, edema = 1}}": "each structure has one of its own",
    "elements.labels={lesion = {outside = 0}}": "above 0, which is outside",
    "elements.minimum={T1 = 10}": "elements.minimum: 'T1' is not of this study; it has patients",
    "elements.minimum={T1w = 0}": "elements.minimum.T1w is 0; it must be 1 or more",
}
STATED = (
    "elements.floor=10",
    "elements.field_strengths=[1.5, 3.0]",
    "elements.spacing_through=[1.0, 6.0]",
    'elements.orientation="axial"',
    "elements.age=[18, 90]",
    "elements.labels={lesion = {lesion = 1}}",
    "elements.minimum={patients = 20, T1w = 15}",
)


@pytest.mark.parametrize(("override", "sentence"), REFUSED.items(), ids=REFUSED)
def test_what_no_data_can_meet_is_refused_in_a_sentence(override: str, sentence: str):
    with pytest.raises(BadStudy, match=sentence):
        tiny(override)


def test_what_is_stated_is_in_the_study_s_sha256_and_what_is_not_is_written_nowhere():
    plain = tiny()
    assert "floor" not in to_table(plain)["elements"]
    assert plain.elements.least == 5
    stated = [fingerprint(tiny(override)) for override in STATED]
    assert len({fingerprint(plain), *stated}) == len(STATED) + 1
    assert tiny(*STATED).elements.least == 10
