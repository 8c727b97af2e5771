"""The coordinator's line to a site elsewhere: it may break, and its letters may come again."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import TypeAlias

from grandrounds.engines.letters import READY, Answer, Ask, BadLetter, seal, unseal

Call: TypeAlias = Callable[[str, bytes, float], bytes]

_ENDS = ("done", "failed", "refused", "stale")
_TOO_MANY = 5


class SiteSilent(RuntimeError):  # noqa: N818 - the word that a failure card shows
    """A site gave no sign of life."""


class Interrupted(ConnectionError):  # noqa: N818 - the word for what happened
    """A line broke after it had held for a while."""


class GivenUp(RuntimeError):  # noqa: N818 - nobody waits for this answer any more
    """The coordinator went on without this answer."""


@dataclass(frozen=True, kw_only=True)
class Patience:
    """How long to wait for a site elsewhere, in seconds.

    A working site says so every `poll`; one that says nothing for `silence` is dead; one that lives
    may take `deadline` for one request (0: as long as it lives). Its process may take `start` to be
    there at all, and is asked every `knock` until then. `pause` lies before any other new try.
    """

    poll: float = 2.0
    silence: float = 20.0
    start: float = 120.0
    knock: float = 1.0
    deadline: float = 0.0
    pause: float = 0.2

    @property
    def per_call(self) -> float:
        """Give the seconds after which one call is lost: several fit into the silence."""
        return self.poll + self.silence / 4

    def before_again(self, number: int) -> float:
        """Give the seconds before this request is asked again."""
        return self.knock if number == READY else self.pause


@dataclass
class Line:
    """The line to one site.

    `call` brings a sealed letter there and the sealed answer back, or raises `ConnectionError`
    where it hears nothing for so many seconds, `Interrupted` if it heard something before. One
    thread numbers the requests and gives them up; any may ask.
    """

    site: str
    call: Call
    patience: Patience
    _number: int = field(default=READY, init=False)

    def begin(self) -> int:
        """Number the next request; nobody waits for the one before any longer."""
        self._number += 1
        return self._number

    def ask(self, number: int, body: bytes, deliver_to: Sequence[str] = ()) -> Answer:
        """Ask, and ask again where the line breaks, until the site has answered.

        Raises `SiteSilent`, `TimeoutError` past the deadline, `BadLetter` where letters come
        damaged again and again, and `GivenUp`.
        """
        whole = Ask(
            number=number,
            wait=self.patience.poll,
            deliver_to=tuple(deliver_to),
            body=body,
        )
        letter, watch = whole, self._watch(number)
        while self._number == number:
            answer = self._once(letter, watch)
            if answer and answer.state in _ENDS:
                return answer
            working = answer is not None and answer.state == "working"
            letter = replace(whole, body=b"") if working else whole
            if working:
                watch.waiting()
            else:
                time.sleep(self.patience.before_again(number))
        raise GivenUp(f"request {number} of '{self.site}' was given up")

    def _watch(self, number: int) -> "_Watch":
        if number == READY:
            return _Watch(self.patience.start)
        return _Watch(self.patience.silence, self.patience.deadline)

    def give_up(self) -> None:
        """Wait no longer for an answer; the site finishes what it has begun."""
        self.begin()

    def _once(self, letter: Ask, watch: "_Watch") -> Answer | None:
        """Call once; None where nothing came that answers this letter."""
        try:
            answer = unseal(self.call(self.site, seal(letter), self.patience.per_call), Answer)
        except Interrupted:
            watch.heard()
            return None
        except ConnectionError as error:
            watch.silent(error)
            return None
        except BadLetter:
            answer = None
        if answer is None or answer.number != letter.number:
            watch.damaged()
            return None
        watch.heard()
        return answer


@dataclass
class _Watch:
    """Watches over one request: how long it has taken, and when the site was last heard."""

    silence: float
    deadline: float = 0.0
    _began: float = field(default_factory=time.monotonic)
    _heard: float = field(default_factory=time.monotonic)
    _damaged: int = 0

    def heard(self) -> None:
        """Note a sign of life."""
        self._heard, self._damaged = time.monotonic(), 0

    def waiting(self) -> None:
        """Note that the site works on. Raises `TimeoutError` past the deadline."""
        taken = time.monotonic() - self._began
        if self.deadline and taken > self.deadline:
            limit = f"the deadline is {self.deadline:g} s"
            raise TimeoutError(f"it lives and has not answered in {taken:.0f} s; {limit}")

    def silent(self, error: ConnectionError) -> None:
        """Note that nothing came. Raises `SiteSilent` when that is too long."""
        silence = time.monotonic() - self._heard
        if silence > self.silence:
            raise SiteSilent(f"no sign of life for {silence:.0f} s: {error}")

    def damaged(self) -> None:
        """Note a letter that does not fit. Raises `BadLetter` at the fifth."""
        self._damaged += 1
        if self._damaged == _TOO_MANY:
            raise BadLetter(f"{_TOO_MANY} letters came damaged, one after the other")
