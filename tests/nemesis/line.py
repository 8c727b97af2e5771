"""The line between the server and its sites: it loses, changes, repeats and reorders letters."""

import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing.connection import Client, Connection, Listener
from threading import Lock, Thread, Timer
from typing import Protocol, TypeAlias, cast

from grandrounds.engines.envelope import READY, RequestEnvelope, unpack
from tests.nemesis.faults import SERVER, Trouble

Link: TypeAlias = "Connection[object, object]"
PATIENCE = 30.0  # seconds in which a site answers, or never does
ASK, MAIL = "ask", "mail"


class Lost(Exception):  # noqa: N818 - what became of a letter
    """Nothing comes back to who sent a letter."""


def carried(port: int, message: object, timeout: float) -> bytes:
    """Bring a message to a port, and the answer back. Raises `ConnectionError`."""
    with Client(("127.0.0.1", port)) as line:
        line.send(message)
        if not line.poll(timeout):
            raise ConnectionError(f"nothing came in {timeout:g} s")
        try:
            return line.recv_bytes()
        except (EOFError, OSError):
            raise ConnectionError("hung up") from None


class Parties(Protocol):
    """The processes at the ends of the line."""

    def port(self, site: str) -> int: ...
    def kill(self, party: str) -> None: ...
    def restart(self, site: str, kit: str) -> None: ...
    def stop(self, party: str, seconds: float) -> None: ...
    def crowd(self, party: str) -> None: ...


@dataclass
class Record:
    """What the line saw for one receiver and topic: letters that were new, and answers to them."""

    known: dict[object, int] = field(default_factory=dict[object, int])
    letters: list[bytes] = field(default_factory=list[bytes])
    answers: list[bytes] = field(default_factory=list[bytes])

    def number(self, letter: bytes, topic: str) -> int:
        """Count letters that bring something new, from 0: the question whether a site is ready."""
        if topic == MAIL:
            key: object = hash(letter)
        else:
            envelope = unpack(letter, RequestEnvelope)
            key = envelope.number
        if key not in self.known:
            is_opening = topic == ASK and key == READY
            ordinals = [each for each in self.known.values() if each]
            self.known[key] = 0 if is_opening else len(ordinals) + 1
            self.letters.append(letter)
        return self.known[key]


@dataclass
class Line:
    """Carries letters between parties, under the troubles of a schedule.

    `struck` are the troubles that happened.
    """

    parties: Parties
    troubles: Sequence[Trouble]
    attempt: int = 1
    struck: set[Trouble] = field(default_factory=set[Trouble])
    old: dict[tuple[str, str], list[bytes]] = field(default_factory=lambda: defaultdict(list))
    _records: dict[tuple[str, str], Record] = field(default_factory=lambda: defaultdict(Record))
    _left: dict[Trouble, int] = field(default_factory=dict[Trouble, int])
    _down: dict[str, float] = field(default_factory=dict[str, float])
    _lock: Lock = field(default_factory=Lock)
    _listener: Listener = field(default_factory=lambda: Listener(("127.0.0.1", 0), backlog=64))

    def __post_init__(self) -> None:
        self._left = {trouble: trouble.times for trouble in self.troubles}
        Thread(target=self._serve, daemon=True).start()

    @property
    def port(self) -> int:
        return cast(tuple[str, int], self._listener.address)[1]

    def close(self) -> None:
        self._listener.close()

    def next_attempt(self) -> None:
        """Begin to count anew; the letters so far are those of an earlier session."""
        with self._lock:
            self.attempt += 1
            for place, record in self._records.items():
                self.old[place] += record.letters
            self._records.clear()
            self._down.clear()

    def _serve(self) -> None:
        with suppress(OSError):
            while True:
                Thread(target=self._carry, args=(self._listener.accept(),), daemon=True).start()

    def _carry(self, caller: Link) -> None:
        with caller, suppress(ConnectionError, EOFError, OSError, Lost):
            topic, to, letter = cast(tuple[str, str, bytes], caller.recv())
            caller.send_bytes(self._under_troubles(topic, to, letter))

    def _under_troubles(self, topic: str, to: str, letter: bytes) -> bytes:
        with self._lock:
            record = self._records[topic, to]
            number = record.number(letter, topic)
            due = list(self._due(topic, to, number))
            down = self._down.get(to, 0.0)
        if time.monotonic() < down:
            time.sleep(0.05)
            raise Lost

        def brought(sent: bytes) -> bytes:
            return carried(self.parties.port(to), (topic, sent), PATIENCE)

        deliver: Deliver = brought
        for trouble in due:
            deliver = self._troubled(trouble, deliver, record)
        answer = deliver(letter)
        record.answers.append(answer)
        return answer

    def _due(self, topic: str, to: str, number: int) -> Iterator[Trouble]:
        for trouble, left in self._left.items():
            here = (trouble.topic, trouble.to, trouble.number, trouble.attempt)
            if left and here == (topic, to, number, self.attempt):
                self._left[trouble] -= 1
                self.struck.add(trouble)
                yield trouble

    def _troubled(
        self, trouble: Trouble, deliver: Callable[[bytes], bytes], record: Record
    ) -> Callable[[bytes], bytes]:
        """Return a delivery that suffers a trouble."""
        act = {**_ON_THE_WAY, **self._deeds()}[trouble.what]
        return lambda letter: act(trouble, deliver, letter, record)

    def _deeds(self) -> Mapping[str, "Act"]:
        parties = self.parties

        def cut(trouble: Trouble, deliver: Deliver, letter: bytes, record: Record) -> bytes:
            self._down[trouble.to] = time.monotonic() + trouble.seconds
            raise Lost

        def slow(trouble: Trouble, deliver: Deliver, letter: bytes, record: Record) -> bytes:
            self._left[trouble] = 9
            time.sleep(min(trouble.seconds, 0.3))
            return deliver(letter)

        def old_letters(trouble: Trouble, deliver: Deliver, letter: bytes, record: Record) -> bytes:
            for old in self.old[trouble.topic, trouble.to]:
                with suppress(ConnectionError):
                    deliver(old)
            return deliver(letter)

        def after(deed: Callable[[Trouble], None]) -> Act:
            def act(trouble: Trouble, deliver: Deliver, letter: bytes, record: Record) -> bytes:
                deed(trouble)
                return deliver(letter)

            return act

        return {
            "cut": cut,
            "cut off": cut,
            "slow": slow,
            "old letters": old_letters,
            "kill": after(lambda trouble: parties.kill(trouble.to)),
            "kill server": after(lambda trouble: parties.kill(SERVER)),
            "restart": after(lambda trouble: parties.restart(trouble.to, "own")),
            "old kit": after(lambda trouble: parties.restart(trouble.to, "old")),
            "foreign kit": after(lambda trouble: parties.restart(trouble.to, "foreign")),
            "stop": after(lambda trouble: parties.stop(trouble.to, trouble.seconds)),
            "second server": after(lambda trouble: parties.crowd(SERVER)),
            "second site": after(lambda trouble: parties.crowd(trouble.to)),
        }


Deliver: TypeAlias = Callable[[bytes], bytes]
Act: TypeAlias = Callable[[Trouble, Deliver, bytes, Record], bytes]


def _lost(trouble: Trouble, deliver: Deliver, letter: bytes, record: Record) -> bytes:
    raise Lost


def _unanswered(trouble: Trouble, deliver: Deliver, letter: bytes, record: Record) -> bytes:
    deliver(letter)
    raise Lost


def _twice(trouble: Trouble, deliver: Deliver, letter: bytes, record: Record) -> bytes:
    other = Thread(target=_in_vain, args=(deliver, letter), daemon=True)
    other.start()
    return deliver(letter)


def _in_vain(deliver: Deliver, letter: bytes) -> None:
    with suppress(ConnectionError):
        deliver(letter)


def _corrupt(trouble: Trouble, deliver: Deliver, letter: bytes, record: Record) -> bytes:
    return deliver(_flipped(letter, trouble.number))


def _corrupt_answer(trouble: Trouble, deliver: Deliver, letter: bytes, record: Record) -> bytes:
    return _flipped(deliver(letter), trouble.number)


def _older_answer(trouble: Trouble, deliver: Deliver, letter: bytes, record: Record) -> bytes:
    answer = deliver(letter)
    return record.answers[-1] if record.answers else answer


def _old_letter(trouble: Trouble, deliver: Deliver, letter: bytes, record: Record) -> bytes:
    """Deliver the letter before this one again, and all before that."""
    for old in [each for each in record.letters if each != letter]:
        deliver(old)
    return deliver(letter)


def _older_instead(trouble: Trouble, deliver: Deliver, letter: bytes, record: Record) -> bytes:
    """Deliver the third last letter in place of this one, which who sent it does not learn."""
    older = record.letters[:-2] or record.letters
    return deliver(older[-1])


def _late(trouble: Trouble, deliver: Deliver, letter: bytes, record: Record) -> bytes:
    time.sleep(trouble.seconds)
    return deliver(letter)


def _late_answer(trouble: Trouble, deliver: Deliver, letter: bytes, record: Record) -> bytes:
    answer = deliver(letter)
    time.sleep(trouble.seconds)
    return answer


def _overtaken(trouble: Trouble, deliver: Deliver, letter: bytes, record: Record) -> bytes:
    """Deliver it when others that were sent after it have come."""
    timer = Timer(trouble.seconds, _in_vain, (deliver, letter))
    timer.daemon = True
    timer.start()
    raise Lost


def _flipped(letter: bytes, number: int) -> bytes:
    changed = bytearray(letter)
    changed[number * 7919 % len(changed)] ^= 16
    return bytes(changed)


_ON_THE_WAY: Mapping[str, Act] = {
    "lost": _lost,
    "unanswered": _unanswered,
    "twice": _twice,
    "corrupt": _corrupt,
    "corrupt answer": _corrupt_answer,
    "older answer": _older_answer,
    "old letter": _old_letter,
    "older instead": _older_instead,
    "late": _late,
    "late answer": _late_answer,
    "overtaken": _overtaken,
}
