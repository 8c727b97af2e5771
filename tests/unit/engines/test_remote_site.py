import errno
import json
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from threading import Event

import pytest

from grandrounds.core.errors import BadImage, BadSite, SiteFailed
from grandrounds.core.failures import Disclosure
from grandrounds.core.messages import Adopt, Reply, Request, decode, encode
from grandrounds.core.sentence import phrase
from grandrounds.core.weights import digest
from grandrounds.engines.envelope import PeerEnvelope, ReplyEnvelope, RequestEnvelope, pack, unpack
from grandrounds.engines.in_process import InProcessEngine
from grandrounds.engines.remote import SiteConnection, ready
from grandrounds.engines.remote_site import SiteAgent
from grandrounds.site.peers import Mailbox
from grandrounds.site.site import Site
from tests.helpers.federation import ignore
from tests.helpers.remote_sites import (
    LONG,
    NAMES,
    NEXT,
    ORDER,
    QUICK,
    Attend,
    Counted,
    Slow,
    Way,
    answered,
    attending,
    engine,
    flipped,
    for_the_first,
    lost,
    no_thread_left,
    nowhere,
    odd,
    reached,
    sites_of,
    state_of,
    traits,
    wait_until,
)


@pytest.fixture(scope="module")
def sites(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Site]:
    return sites_of(tmp_path_factory.mktemp("sites"))


@pytest.fixture
def attend(sites: Mapping[str, Site]) -> Iterator[Attend]:
    with attending(sites) as attend:
        yield attend


def test_a_letter_that_comes_again_is_answered_from_the_store(attend: Attend):
    site = Slow(attend.gate)
    attendant = attend("alder", site)
    letter = pack(RequestEnvelope(number=1, wait=LONG, body=encode(ORDER)))
    with ThreadPoolExecutor(2) as pool:
        answers = [pool.submit(attendant.answer, letter) for _ in range(2)]
        assert state_of(attendant, RequestEnvelope(number=1, wait=0.0)) == "working"
        attend.gate.set()
        first, second = [answer.result() for answer in answers]
    assert first == second == attendant.answer(letter)
    assert attendant.answer(pack(RequestEnvelope(number=1, wait=LONG))) == first
    assert traits_of(first) == traits(answered("alder", ORDER))
    assert site.asked == [ORDER]


def traits_of(sealed: bytes) -> tuple[Reply, str]:
    reply = decode(unpack(sealed, ReplyEnvelope).body)
    assert isinstance(reply, Reply)
    return traits(reply)


def test_an_older_number_is_stale_and_an_unknown_one_without_its_request_is_not_begun(
    attend: Attend,
):
    site = Counted()
    attendant = attend("alder", site)
    assert state_of(attendant, RequestEnvelope(number=2, wait=LONG)) == "unknown"
    assert state_of(attendant, RequestEnvelope(number=2, wait=LONG, body=encode(NEXT))) == "done"
    assert state_of(attendant, RequestEnvelope(number=1, wait=LONG, body=encode(ORDER))) == "stale"
    assert state_of(attendant, RequestEnvelope(number=0, wait=LONG)) == "stale"
    assert attendant.answer(b"") == pack(ReplyEnvelope(number=-1, state="damaged"))
    assert site.asked == [NEXT]


@contextmanager
def refusing(error: Exception) -> Iterator[tuple[InProcessEngine, bytes]]:
    raise error
    yield


REFUSALS = {
    BadImage("/data/anna/t1.nii.gz: cannot be read; correct it."): "an image at the site cannot be "
    "used",
    BadSite("anna has no T2w", safe=phrase("no session has T2w")): "no session has T2w",
    OSError(errno.ENOSPC, "No space for anna", "anna"): "No space left on device",
}


@pytest.mark.parametrize("error", REFUSALS, ids=lambda error: type(error).__name__)
def test_a_site_that_cannot_open_says_why_and_its_own_log_says_all(
    attend: Attend, error: Exception, caplog: pytest.LogCaptureFixture
):
    refuses = SiteAgent(refusing(error), nowhere, Disclosure("birch"))
    way = Way({"alder": attend("alder"), "birch": refuses})
    with pytest.raises(BadSite) as told:
        ready([SiteConnection(name, way, QUICK) for name in way.attendants])
    log = "see the log of site 'birch'"
    assert str(told.value) == f"site 'birch' cannot open: {REFUSALS[error]}; {log}"
    assert str(error) in caplog.text
    refuses.close()


@contextmanager
def opening(gate: Event, simulation: InProcessEngine) -> Iterator[tuple[InProcessEngine, bytes]]:
    assert gate.wait(LONG)
    if not simulation.sites:
        raise BadSite("anna has no T2w", safe=phrase("no T2w"))
    yield simulation, b""


def test_a_refusal_does_not_wait_for_a_site_that_opens_slowly(
    attend: Attend, sites: Mapping[str, Site]
):
    """Alder refuses once birch has been asked, too."""
    asked = Event()

    def call(site: str, sealed: bytes, timeout: float) -> bytes:
        if site == "birch":
            asked.set()
        return attendants[site].answer(sealed)

    birch = InProcessEngine((sites["birch"],), ignore)
    refuses = SiteAgent(opening(asked, InProcessEngine((), ignore)), nowhere, Disclosure("alder"))
    slow = SiteAgent(opening(attend.gate, birch), nowhere, Disclosure("birch"))
    attendants = {"alder": refuses, "birch": slow}
    attend.opened.extend(attendants.values())
    began = time.monotonic()
    with pytest.raises(BadSite, match="no T2w"):
        ready([SiteConnection(name, call, QUICK) for name in attendants])
    assert time.monotonic() - began < LONG / 2


@pytest.mark.slow
def test_readiness_waits_for_a_site_that_is_there_late_but_not_for_ever(attend: Attend):
    late = Way({"alder": attend("alder")}, there=for_the_first(20, lost))
    patience = replace(QUICK, start=LONG, silence=0.1)
    assert ready([SiteConnection("alder", late, patience)]) == {"alder": b"alder"}
    never = Way({"alder": attend("alder")}, there=for_the_first(10**6, lost))
    patience = replace(QUICK, start=0.2, silence=LONG)
    with pytest.raises(SiteFailed, match=r"'alder' failed in round 0 \(describe\): SiteSilent"):
        ready([SiteConnection("alder", never, patience)])


def test_the_first_request_of_a_new_line_is_not_taken_for_the_question_whether_it_is_ready(
    attend: Attend,
):
    attendant = attend("alder")
    assert ready([SiteConnection("alder", Way({"alder": attendant}), QUICK)]) == {"alder": b"alder"}
    [reply] = reached(("alder", attendant)).ask({"alder": ORDER})
    assert reply.round == 1


def test_a_site_that_was_left_behind_does_not_begin_what_nobody_waits_for(attend: Attend):
    slow = Slow(attend.gate)
    attendant = attend("alder", slow)
    asks = [
        RequestEnvelope(number=number, wait=0.0, body=encode(replace(ORDER, round=number)))
        for number in (1, 2, 3, 4)
    ]
    for ask in asks:
        assert state_of(attendant, ask) == "working"
        wait_until(lambda: len(slow.asked) == 1)
    attend.gate.set()
    assert state_of(attendant, replace(asks[-1], wait=LONG)) == "done"
    assert [request.round for request in slow.asked] == [1, 4]


def delivered(way: Callable[[str, bytes], bytes], attend: Attend) -> dict[str, SiteAgent]:
    attendants: dict[str, SiteAgent] = {}

    def post(peer: str, letter: bytes) -> bytes:
        return attendants[peer].receive_update(way(peer, letter))

    attendants |= {name: attend(name, answered, post) for name in NAMES}
    return attendants


def mailbox_of(attendant: SiteAgent) -> Mailbox:
    site = attendant._site  # pyright: ignore[reportPrivateUsage]
    assert isinstance(site, Site)
    return site.mailbox


def test_an_update_goes_to_its_peers_and_a_receipt_to_the_coordinator(
    attend: Attend, sites: Mapping[str, Site]
):
    posted: list[str] = []

    def noted(peer: str, letter: bytes) -> bytes:
        posted.append(peer)
        return letter

    attendants = delivered(noted, attend)
    to = ("alder", "cedar")
    receipts = engine(Way(attendants), *NAMES).ask(dict.fromkeys(NAMES, ORDER), deliver_to=to)
    same = InProcessEngine(tuple(odd(site) for site in sites.values()), ignore)
    here = same.ask(dict.fromkeys(NAMES, ORDER), deliver_to=to)
    sent = {"alder": 4, "birch": 8, "cedar": 4}
    assert receipts == here == [Reply(site=n, round=1, sent=sent[n]) for n in NAMES]
    assert sorted(posted) == ["alder", "alder", "cedar", "cedar"]
    for name in to:
        updates = mailbox_of(attendants[name]).updates(NAMES, 1)
        assert [(u.site, float(u.weights["w"])) for u in updates] == [(n, 1.0) for n in NAMES]
    assert mailbox_of(attendants["birch"]) == Mailbox()


@pytest.mark.slow
def test_a_peer_that_cannot_be_reached_is_named_by_the_site_that_could_not(attend: Attend):
    def broken(peer: str, letter: bytes) -> bytes:
        if peer == "cedar":
            raise ConnectionError("no route")
        return letter

    attendants = delivered(broken, attend)
    with pytest.raises(SiteFailed) as stopped:
        engine(Way(attendants), *NAMES).ask({"birch": NEXT}, deliver_to=NAMES)
    card = stopped.value.card
    assert (card.site, card.round, card.error) == ("birch", 2, "ConnectionError")
    assert card.message == "its update did not reach 'cedar'; see the log of site 'birch'"


@pytest.mark.slow
def test_mail_that_is_lost_or_damaged_is_brought_again(attend: Attend):
    tries: list[str] = []

    def bad_at_first(peer: str, letter: bytes) -> bytes:
        tries.append(peer)
        if len(tries) == 1:
            raise ConnectionError("the line broke")
        return letter[:-1] if len(tries) == 2 else letter

    attendants = delivered(bad_at_first, attend)
    [receipt] = engine(Way(attendants), *NAMES).ask({"birch": ORDER}, deliver_to=("cedar",))
    assert (receipt.sent, tries) == (4, ["cedar"] * 3)
    [update] = mailbox_of(attendants["cedar"]).updates(["birch"], 1)
    assert digest(update.weights) == digest(answered("birch", ORDER).weights)


def test_mail_that_comes_twice_counts_once_and_damaged_mail_not_at_all(attend: Attend):
    attendant = attend("alder")
    ready([SiteConnection("alder", Way({"alder": attendant}), QUICK)])
    letter = pack(PeerEnvelope(body=encode(answered("birch", ORDER))))
    assert unpack(attendant.receive_update(flipped(letter)), ReplyEnvelope).state == "damaged"
    assert mailbox_of(attendant) == Mailbox()
    assert [unpack(attendant.receive_update(letter), ReplyEnvelope).state for _ in range(2)] == [
        "done",
        "done",
    ]
    [update] = mailbox_of(attendant).updates(["birch"], 1)
    assert digest(update.weights) == digest(answered("birch", ORDER).weights)


def test_a_site_refuses_a_request_to_send_its_update_along_a_path(attend: Attend):
    site = Counted()
    letter = RequestEnvelope(number=1, wait=LONG, body=encode(ORDER), deliver_to=("../birch",))
    answer = unpack(attend("alder", site).answer(pack(letter)), ReplyEnvelope)
    assert (answer.state, site.asked) == ("failed", [])
    assert json.loads(answer.body)["message"].startswith("peer '../birch': a name has letters")


@pytest.mark.parametrize("body", [b"", b"nonsense", encode(Adopt(round=1, leader="../birch"))])
def test_a_site_refuses_a_request_that_cannot_be_read_and_answers_the_next(
    attend: Attend, body: bytes
):
    site = Counted()
    attendant = attend("alder", site)
    letter = RequestEnvelope(number=1, wait=LONG, body=body or b"\0" * 9)
    answer = unpack(attendant.answer(pack(letter)), ReplyEnvelope)
    assert answer.state == "failed"
    card = json.loads(answer.body)
    assert (card["site"], card["error"]) == ("alder", "Refused")
    assert card["message"].startswith("what came cannot be read (")
    assert state_of(attendant, RequestEnvelope(number=2, wait=LONG, body=encode(NEXT))) == "done"
    assert site.asked == [NEXT]


@pytest.mark.parametrize("body", [b"nonsense", encode(Reply(site="../birch", round=1))])
def test_a_site_refuses_an_update_that_cannot_be_read(attend: Attend, body: bytes):
    attendant = attend("alder", Counted())
    answer = unpack(attendant.receive_update(pack(PeerEnvelope(body=body))), ReplyEnvelope)
    assert (answer.state, mailbox_of(attendant)) == ("refused", Mailbox())


def test_a_site_finishes_what_it_has_begun_before_it_closes(sites: Mapping[str, Site]):
    told: list[str] = []

    def train(site: str, request: Request) -> Reply:
        time.sleep(0.1)
        told.append("trained")
        return answered(site, request)

    @contextmanager
    def host() -> Iterator[tuple[InProcessEngine, bytes]]:
        yield InProcessEngine((odd(sites["alder"], train),), ignore), b""
        told.append("closed")

    with no_thread_left():
        attendant = SiteAgent(host(), nowhere, Disclosure("alder"))
        assert (
            state_of(attendant, RequestEnvelope(number=1, wait=0.0, body=encode(ORDER)))
            == "working"
        )
        attendant.close()
    assert told == ["trained", "closed"]
