import pytest
from hypothesis import given
from hypothesis import strategies as st

from grandrounds.engines.envelope import (
    CorruptEnvelope,
    Envelope,
    PeerEnvelope,
    ReplyEnvelope,
    RequestEnvelope,
    pack,
    unpack,
)

BODIES = st.binary(max_size=40)
SITES = st.lists(st.text(max_size=5), max_size=3).map(tuple)
NUMBERS = st.integers(-1, 2**40)
STATES = ("done", "working", "unknown", "damaged", "stale", "failed", "refused")
LETTERS: st.SearchStrategy[Envelope] = st.one_of(
    st.builds(
        RequestEnvelope, number=NUMBERS, wait=st.floats(0, 99), deliver_to=SITES, body=BODIES
    ),
    st.builds(ReplyEnvelope, number=NUMBERS, state=st.sampled_from(STATES), body=BODIES),
    st.builds(PeerEnvelope, body=BODIES),
)


@given(LETTERS)
def test_a_letter_arrives_as_it_was_sent_and_is_sealed_the_same_each_time(letter: Envelope):
    assert unpack(pack(letter), type(letter)) == letter
    assert pack(letter) == pack(letter)


@given(LETTERS, st.data())
def test_any_change_of_any_byte_is_noticed(letter: Envelope, data: st.DataObject):
    sealed = bytearray(pack(letter))
    place = data.draw(st.integers(0, len(sealed) - 1), "place")
    sealed[place] ^= data.draw(st.integers(1, 255), "change")
    with pytest.raises(CorruptEnvelope, match=f"a letter of {len(sealed)} bytes came damaged"):
        unpack(bytes(sealed), type(letter))


@given(LETTERS, st.data())
def test_a_letter_that_was_cut_or_continued_is_noticed(letter: Envelope, data: st.DataObject):
    sealed = pack(letter)
    cut = data.draw(st.integers(0, len(sealed) - 1), "cut")
    more = data.draw(st.binary(min_size=1, max_size=40), "more")
    for changed in (sealed[:cut], sealed[cut + 1 :], sealed + more):
        with pytest.raises(CorruptEnvelope):
            unpack(changed, type(letter))


def test_the_header_can_be_read_and_the_body_is_not_in_it():
    body = bytes(range(256))
    sealed = pack(RequestEnvelope(number=3, wait=2.0, deliver_to=("birch",), body=body))
    assert sealed.endswith(b'{"number": 3, "wait": 2.0, "deliver_to": ["birch"]}' + body)
