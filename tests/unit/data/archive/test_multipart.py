"""An answer of several parts is the same however the network cuts it."""

from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from grandrounds.data.archive.multipart import BadAnswer, PartStream, boundary_of

CONTENTS = (b"first\r\n--almost", b"", b"\r\n", bytes(range(256)))
WHOLE = (
    b"\r\n".join(b"--b\r\nContent-Type: application/dicom\r\n\r\n" + each for each in CONTENTS)
    + b"\r\n--b--\r\n"
)


def parts(chunks: list[bytes]) -> list[bytes]:
    found: dict[int, bytes] = {}
    whole: list[bytes] = []
    for number, piece in PartStream(b"b").pieces(chunks):
        if piece is None:
            whole.append(found.get(number, b""))
        else:
            found[number] = found.get(number, b"") + piece
    return whole


@settings(max_examples=40)
@given(cuts=st.lists(st.integers(0, len(WHOLE)), max_size=30))
def test_parts_are_the_same_however_they_are_cut(cuts: list[int]):
    places = [0, *sorted(cuts), len(WHOLE)]
    chunks = [WHOLE[a:b] for a, b in pairwise(places) if a < b]
    assert parts(chunks) == list(CONTENTS)


def test_parts_come_byte_by_byte_and_after_a_preamble():
    assert parts([bytes([each]) for each in b"for old readers\r\n" + WHOLE]) == list(CONTENTS)


def test_a_part_without_a_header_is_read():
    assert parts([b"--b\r\n\r\nplain\r\n--b--"]) == [b"plain"]


@pytest.mark.parametrize("length", [0, 3, 20, 60, len(WHOLE) - 5])
def test_an_answer_that_ends_too_early_is_none(length: int):
    with pytest.raises(BadAnswer, match="ends in the middle of a part"):
        parts([WHOLE[:length]])


def test_a_header_without_end_is_none():
    with pytest.raises(BadAnswer, match="without an end of its header"):
        parts([b"--b\r\n" + b"x: y" * 10_000, b"x" * 10])


def test_the_boundary_is_read_with_and_without_quotes():
    assert boundary_of('multipart/related; type="application/dicom"; boundary="a b"') == b"a b"
    assert boundary_of("Multipart/Related;boundary=xyz;type=application/dicom") == b"xyz"
    for kind in ("", "application/json", "multipart/related"):
        with pytest.raises(BadAnswer):
            boundary_of(kind)
