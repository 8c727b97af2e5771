"""Sealed letters in messages of a job, whose engine hands them over here and sometimes does not."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from threading import Thread
from types import SimpleNamespace
from typing import Any

import pytest

from grandrounds.engines.remote import ConnectionInterrupted
from tests.helpers.flare_federation import needs_flare

pytest.importorskip("nvflare", reason="NVIDIA FLARE is not installed")

from nvflare.apis.fl_constant import ReturnCode
from nvflare.apis.shareable import Shareable, make_reply

from grandrounds.flare import transport as letters
from grandrounds.flare.transport import ASK, Transport

pytestmark = needs_flare

PART = "grandrounds.part"
LARGE = bytes(range(256)) * 40
QUICK = 5.0  # seconds
PARTIES, MOST = ("server", "alder", "birch"), 50_000


@dataclass
class Office:
    """The engines of all parties. `lost` says of a message whether it does not arrive."""

    handlers: dict[tuple[str, str], Callable[..., Shareable]] = field(default_factory=dict)
    lost: Callable[[str, Shareable], bool] = lambda topic, message: False
    seen: list[tuple[str, Shareable]] = field(default_factory=list)

    def post(self, name: str, answer: Callable[[bytes], bytes] | None = None) -> Transport:
        def register(topic: str, handler: Callable[..., Shareable]) -> None:
            self.handlers[name, topic] = handler

        engine = SimpleNamespace(
            register_aux_message_handler=register, send_aux_request=self.handed_over
        )
        context: Any = SimpleNamespace(get_engine=lambda: engine)
        post = Transport(context, name, parties=PARTIES, largest=MOST)
        if answer:
            post.answer(ASK, answer)
        return post

    def handed_over(
        self, *, targets: list[str], topic: str, request: Shareable, **_: object
    ) -> dict[str, Shareable]:
        [to] = targets
        if (to, topic) not in self.handlers:
            return {}
        self.seen.append((topic, request))
        if self.lost(topic, request):
            return {to: make_reply(ReturnCode.COMMUNICATION_ERROR)}
        try:
            reply = self.handlers[to, topic](topic=topic, request=request, fl_ctx=None)
        except ConnectionError:
            reply = make_reply(ReturnCode.HANDLER_EXCEPTION)
        self.seen.append((topic, reply))
        return {to: reply}

    def asked(self, topic: str) -> int:
        return sum(each == topic for each, _ in self.seen) // 2


def echo(letter: bytes) -> bytes:
    return letter[::-1]


@pytest.fixture(autouse=True)
def in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Letters of a kilobyte are large, and go in parts of two."""
    monkeypatch.setattr(letters, "SMALL", 1024)
    monkeypatch.setattr(letters, "AT_ONCE", 2048)
    monkeypatch.setattr(letters, "_PAUSE", 0.02)


def test_a_small_letter_goes_in_one_message():
    office = Office()
    office.post("alder", echo)
    assert office.post("server").send(ASK, "alder", b"hello", QUICK) == b"olleh"
    assert [topic for topic, _ in office.seen] == [ASK, ASK]


def test_a_large_letter_is_fetched_in_parts_by_who_gets_it_and_so_is_its_answer():
    office = Office()
    office.post("alder", echo)
    assert office.post("server").send(ASK, "alder", LARGE, QUICK) == echo(LARGE)
    assert office.asked(PART) == 5 + 5
    carried = [len(v) for _, m in office.seen for v in m.values() if isinstance(v, bytes)]
    assert max(carried) == 2048


def test_a_letter_that_takes_longer_than_a_call_may_is_answered_once():
    office, came = Office(), list[bytes]()

    def slow(topic: str, message: Shareable) -> bool:
        time.sleep(0.05 if topic == PART else 0.0)
        return False

    def answer(letter: bytes) -> bytes:
        came.append(letter)
        return b"done"

    office.lost = slow
    office.post("alder", answer)
    assert office.post("server").send(ASK, "alder", LARGE, 0.1) == b"done"
    assert came == [LARGE]
    assert office.asked(ASK) > 2


def test_a_part_that_is_lost_is_fetched_again():
    office, lost = Office(), [True, True]
    office.lost = lambda topic, message: topic == PART and bool(lost) and lost.pop()
    office.post("alder", echo)
    assert office.post("server").send(ASK, "alder", LARGE, QUICK) == echo(LARGE)


def test_a_line_that_breaks_in_the_middle_was_not_silent():
    office, parts = Office(), iter(range(100))
    office.lost = lambda topic, message: topic == PART and (time.sleep(0.02), next(parts) > 2)[1]
    office.post("alder", echo)
    with pytest.raises(ConnectionInterrupted):
        office.post("server").send(ASK, "alder", LARGE, QUICK)


def test_an_answer_that_breaks_in_the_middle_was_a_sign_of_life():
    office = Office()
    office.lost = lambda topic, message: topic == PART
    office.post("alder", lambda letter: LARGE)
    with pytest.raises(ConnectionInterrupted):
        office.post("server").send(ASK, "alder", b"hello", QUICK)


def test_a_line_on_which_nothing_came_is_silent():
    office = Office()
    office.lost = lambda topic, message: topic == PART
    office.post("alder", echo)
    post = office.post("server")
    for to, sealed in (("alder", LARGE), ("birch", b"hello")):
        with pytest.raises(ConnectionError) as raised:
            post.send(ASK, to, sealed, QUICK)
        assert not isinstance(raised.value, ConnectionInterrupted)


@pytest.mark.slow
def test_a_newer_letter_waits_on_when_an_older_one_is_answered():
    office, fetched = Office(), list[bytes]()
    office.post("alder", echo)
    post = office.post("server")

    def meanwhile(topic: str, message: Shareable) -> bool:
        time.sleep(0.05 if topic == PART else 0.0)
        if topic == ASK and message.get("letter") == b"older":
            fetched.append(b"begun")
            Thread(target=lambda: fetched.append(post.send(ASK, "alder", LARGE, QUICK))).start()
            while office.asked(PART) == 0:
                time.sleep(0.001)
        return False

    office.lost = meanwhile
    assert post.send(ASK, "alder", b"older", QUICK) == b"redlo"
    end = time.monotonic() + QUICK
    while len(fetched) < 2 and time.monotonic() < end:
        time.sleep(0.01)
    assert fetched == [b"begun", echo(LARGE)]


def test_a_letter_whose_sender_is_a_path_is_not_answered():
    office, message = Office(), make_reply(ReturnCode.OK)
    office.post("alder", echo)
    message["from"], message["letter"] = "../birch", b"letter"
    with pytest.raises(ConnectionError, match=r"^sender '\.\./birch': a name has letters"):
        office.handlers["alder", ASK](topic=ASK, request=message, fl_ctx=None)


@pytest.mark.parametrize("who", ["birch", "alder"])
def test_a_letter_for_one_site_is_handed_to_no_other_and_under_no_other_ticket(who: str):
    office = Office()
    tickets = list[str]()

    def look(topic: str, message: Shareable) -> bool:
        if topic == PART and not tickets:
            tickets.append(message["ticket"])
            asked = make_reply(ReturnCode.OK)
            ticket = tickets[0] if who == "birch" else "another"
            asked["from"], asked["ticket"], asked["start"] = who, ticket, 0
            reply = office.handlers["server", PART](topic=PART, request=asked, fl_ctx=None)
            assert reply.get_return_code() == ReturnCode.BAD_REQUEST_DATA
            assert "letter" not in reply
        return False

    office.lost = look
    office.post("alder", echo)
    assert office.post("server").send(ASK, "alder", LARGE, QUICK) == echo(LARGE)
    assert len(tickets) == 1


def test_a_letter_that_says_it_is_larger_than_the_study_allows_is_not_fetched():
    office = Office()
    office.post("alder", echo)
    with pytest.raises(ConnectionError, match="BAD_REQUEST_DATA"):
        office.post("server").send(ASK, "alder", bytes(MOST + 1), QUICK)
    assert office.asked(PART) == 0


@pytest.mark.parametrize("size", [0, -1, 10**30, "large", None, 2.5])
def test_a_size_that_is_none_is_refused(size: Any):
    office = Office()
    office.post("alder", echo)
    message = make_reply(ReturnCode.OK)
    message["from"], message["ticket"], message["size"] = "server", "t", size
    reply = office.handed_over(targets=["alder"], topic=ASK, request=message)["alder"]
    assert reply.get_return_code() == ReturnCode.BAD_REQUEST_DATA
    assert office.asked(PART) == 0


def test_an_answer_that_is_too_large_is_not_fetched():
    office = Office()
    office.post("alder", lambda letter: bytes(MOST + 1))
    with pytest.raises(ConnectionError, match="more than this study's letters have"):
        office.post("server").send(ASK, "alder", b"hello", QUICK)
    assert office.asked(PART) == 0


@pytest.mark.parametrize("sender", ["mallory", "alder2"])
def test_a_stranger_is_not_answered(sender: str):
    office, came = Office(), list[bytes]()
    office.post("alder", lambda letter: (came.append(letter), b"")[1])
    message = make_reply(ReturnCode.OK)
    message["from"], message["letter"] = sender, b"hello"
    reply = office.handed_over(targets=["alder"], topic=ASK, request=message)["alder"]
    assert (reply.get_return_code(), came) == (ReturnCode.BAD_REQUEST_DATA, [])


@pytest.mark.slow
def test_of_one_sender_one_letter_is_held_in_memory():
    """A hundred letters that are never fetched to their end leave one behind."""
    office = Office()
    post = office.post("alder", echo)
    office.lost = lambda topic, message: topic == PART
    for number in range(100):
        message = make_reply(ReturnCode.OK)
        message["from"], message["ticket"], message["size"] = "server", f"t{number}", MOST
        office.handed_over(targets=["alder"], topic=ASK, request=message)
    assert len(post._incoming) <= 1
