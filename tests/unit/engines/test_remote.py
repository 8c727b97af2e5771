import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace

import pytest

from grandrounds.core.errors import SiteFailed
from grandrounds.core.messages import encode
from grandrounds.core.weights import digest
from grandrounds.engines.envelope import READY, ReplyEnvelope, RequestEnvelope, pack
from grandrounds.engines.remote import Abandoned, ConnectionInterrupted, SiteConnection, ready
from grandrounds.engines.remote_site import SiteAgent
from grandrounds.site.site import Site
from tests.helpers.remote_sites import (
    LONG,
    NEXT,
    ORDER,
    QUICK,
    Attend,
    Counted,
    Slow,
    Way,
    answered,
    attending,
    card_of,
    engine,
    flipped,
    for_the_first,
    lost,
    reached,
    sites_of,
    state_of,
    traits,
)


@pytest.fixture(scope="module")
def sites(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Site]:
    return sites_of(tmp_path_factory.mktemp("sites"))


@pytest.fixture
def attend(sites: Mapping[str, Site]) -> Iterator[Attend]:
    with attending(sites) as attend:
        yield attend


def cut(sealed: bytes) -> bytes:
    return sealed[: len(sealed) // 2]


def sent_before(sealed: bytes) -> bytes:
    return pack(ReplyEnvelope(number=0, state="done", body=b"alder"))


def harmed(attendant: SiteAgent, where: str, calls: int, harm: Callable[[bytes], bytes]) -> Way:
    happens, way = for_the_first(calls, harm), Way({"alder": attendant})
    return replace(way, there=happens) if where == "there" else replace(way, back=happens)


HARMS = [("there", cut), ("there", flipped), ("there", lost)]
HARMS += [("back", cut), ("back", flipped), ("back", lost), ("back", sent_before)]


@pytest.mark.parametrize(("where", "harm"), HARMS)
def test_what_is_lost_or_damaged_is_asked_again_and_the_site_trains_once(
    attend: Attend, where: str, harm: Callable[[bytes], bytes]
):
    site = Counted()
    way = harmed(attend("alder", site), where, 4, harm)
    [reply] = engine(way).ask({"alder": ORDER})
    assert digest(reply.weights) == digest(answered("alder", ORDER).weights)
    assert len(way.letters) == 5
    assert site.asked == [ORDER]


@pytest.mark.parametrize(("where", "harm"), [each for each in HARMS if each[1] is not lost])
def test_five_damaged_letters_in_a_row_are_a_failure(
    attend: Attend, where: str, harm: Callable[[bytes], bytes]
):
    way = harmed(attend("alder"), where, 5, harm)
    card = card_of(engine(way))
    assert (card.site, card.round, card.stage, card.error) == (
        "alder",
        1,
        "train",
        "CorruptEnvelope",
    )
    assert card.message == "5 letters came damaged, one after the other"
    assert "changes what is sent" in card.hint
    assert len(way.letters) == 5


def test_a_letter_damaged_now_and_then_is_no_failure(attend: Attend):
    def every_other(number: int, sealed: bytes) -> bytes:
        if number == 20:
            attend.gate.set()
        return flipped(sealed) if number % 2 else sealed

    way = Way({"alder": attend("alder", Slow(attend.gate))}, there=every_other)
    engine(way, patience=replace(QUICK, poll=0.01)).ask({"alder": ORDER})
    assert len(way.letters) >= 20


@pytest.mark.slow
def test_a_site_that_says_nothing_for_too_long_is_silent_even_if_it_once_worked(attend: Attend):
    gone = time.monotonic() + 0.3

    def hung_up(number: int, sealed: bytes) -> bytes:
        return sealed if time.monotonic() < gone else lost(sealed)

    way = Way({"alder": attend("alder", Slow(attend.gate))}, there=hung_up)
    card = card_of(engine(way, patience=replace(QUICK, silence=0.2)), NEXT)
    assert time.monotonic() - gone > 0.15
    assert (card.site, card.round, card.stage, card.error) == ("alder", 2, "train", "SiteSilent")
    assert card.message.startswith("no sign of life for ")
    assert card.message.endswith(" s: the cable is out")
    assert "then resume the run" in card.hint


@pytest.mark.slow
def test_a_slow_site_that_lives_is_waited_for(attend: Attend):
    way = Way({"alder": attend("alder", Slow(attend.gate))})
    threading.Timer(0.5, attend.gate.set).start()
    began = time.monotonic()
    [reply] = engine(way, patience=replace(QUICK, silence=0.2)).ask({"alder": ORDER})
    assert reply.site == "alder"
    assert time.monotonic() - began > 0.4


def test_a_request_that_was_given_up_is_not_sent(attend: Attend):
    attendant = attend("alder")
    line = SiteConnection("alder", Way({"alder": attendant}), QUICK)
    number = line.begin()
    line.abandon()
    with pytest.raises(Abandoned, match="request 1 of 'alder'"):
        line.ask(number, encode(ORDER))
    assert state_of(attendant, RequestEnvelope(number=number, wait=0.0)) == "unknown"


@pytest.mark.slow
def test_a_line_that_held_before_it_broke_is_a_sign_of_life(attend: Attend):
    """Each try is longer than the silence after which a site is dead."""
    hasty = replace(QUICK, silence=0.1)
    way, broken = Way({"alder": attend("alder")}), [ConnectionInterrupted("in the middle")] * 3

    def call(site: str, sealed: bytes, timeout: float) -> bytes:
        if broken:
            time.sleep(hasty.silence * 1.5)
            raise broken.pop()
        return way(site, sealed, timeout)

    line = SiteConnection("alder", call, hasty)
    assert line.ask(line.begin(), encode(ORDER)).state == "done"
    assert broken == []


def test_past_the_deadline_a_site_that_lives_has_failed(attend: Attend):
    patience = replace(QUICK, deadline=0.2)
    card = card_of(reached(("alder", attend("alder", Slow(attend.gate))), patience=patience))
    assert (card.site, card.round, card.stage, card.error) == ("alder", 1, "train", "TimeoutError")
    assert card.message.startswith("it lives and has not answered in ")
    assert card.message.endswith(" s; the deadline is 0.2 s")


def test_a_site_that_answers_another_coordinator_says_so_at_once(attend: Attend):
    attendant = attend("alder")
    state_of(attendant, RequestEnvelope(number=7, wait=LONG, body=encode(ORDER)))
    card = card_of(reached(("alder", attendant)))
    assert card.message == "it is past request 1: does another coordinator ask it?"
    with pytest.raises(SiteFailed, match=r"past request 0"):
        ready([SiteConnection("alder", Way({"alder": attendant}), QUICK)])


def test_a_working_site_is_asked_without_the_request_until_it_knows_nothing_of_it(attend: Attend):
    """It was started anew in the middle of its work; then it gets the whole request again."""
    first, second = attend("alder", Slow(attend.gate)), attend("alder")

    def started_anew(number: int, sealed: bytes) -> bytes:
        way.attendants = {"alder": second}
        return sealed

    way = Way({"alder": first}, back=started_anew)
    [reply] = engine(way).ask({"alder": ORDER})
    assert traits(reply) == traits(answered("alder", ORDER))
    whole, bare = encode(ORDER), b""
    assert [letter.body for letter in way.letters] == [whole, bare, whole]


@pytest.mark.slow
def test_a_site_that_is_not_there_yet_is_asked_less_often_than_one_whose_line_broke(
    attend: Attend,
):
    patience = replace(QUICK, connect_every=0.3)
    lines = [
        SiteConnection("alder", harmed(attend("alder"), "there", 2, lost), patience)
        for _ in range(2)
    ]
    began = time.monotonic()
    lines[0].ask(lines[0].begin(), encode(ORDER))
    there = time.monotonic()
    lines[1].ask(READY, b"")
    assert there - began < 0.3
    assert time.monotonic() - there > 0.6
