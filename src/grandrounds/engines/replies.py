"""Replies are collected in roster order, whatever order they come in, and counted by the quorum."""

from collections.abc import Callable, Container, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TypeAlias, TypeVar

from grandrounds.algorithms.topology import Quorum
from grandrounds.core.errors import FailureCard, SiteFailed
from grandrounds.core.messages import Reply, Request

Given = TypeVar("Given")


def in_roster_order(
    roster: Sequence[str],
    asked: Container[str],
    results: Iterable[tuple[str, Given | Exception]],
    *,
    hurried: bool,
) -> Iterator[tuple[str, Given | Exception]]:
    """Bring results into roster order; hurried, a failure is raised before all others."""
    turns = iter([name for name in roster if name in asked])
    turn = next(turns, None)
    came: dict[str, Given | Exception] = {}
    for site, result in results:
        if hurried:
            unwrap(result)
        came[site] = result
        while turn in came:
            yield turn, came.pop(turn)
            turn = next(turns, None)


def unwrap(result: Given | Exception) -> Given:
    """Give what a site answered. Raises what it failed with."""
    if isinstance(result, Exception):
        raise result
    return result


Result: TypeAlias = Reply | Exception
OnReply: TypeAlias = Callable[[Request, Reply], None]
OnFailure: TypeAlias = Callable[[FailureCard], None]


def fail_if_missing(card: FailureCard) -> None:
    """Refuse to go on without a site where nobody is told. Raises `SiteFailed`."""
    raise SiteFailed(card)


@dataclass
class ReplyCollector:
    """The roll of one `ask`: a failure stops it, unless the quorum allows it; then it is told."""

    quorum: Quorum
    on_reply: OnReply
    on_failure: OnFailure
    _replies: list[Reply] = field(default_factory=list[Reply])
    _failures: list[SiteFailed] = field(default_factory=list[SiteFailed])
    _stage: str = ""

    @contextmanager
    def call(self) -> Generator[None, None, None]:
        """Call on a site. Raises its `SiteFailed` where everyone is needed."""
        try:
            yield
        except SiteFailed as failure:
            if self.quorum.least is None:
                raise
            self._miss(failure)

    def collect(
        self,
        roster: Sequence[str],
        requests: Mapping[str, Request],
        results: Iterable[tuple[str, Result]],
    ) -> list[Reply]:
        """Note what sites answer as it comes, each in its turn, and return the replies that count.

        Raises `SiteFailed` for the first that fails, unless the quorum can do without it, and any
        other error that a site answered with.
        """
        for site, result in in_roster_order(
            roster, requests, results, hurried=self.quorum.least is None
        ):
            with self.call():
                self.note(requests[site], unwrap(result))
        return self.answered()

    def note(self, request: Request, reply: Reply) -> None:
        """Note a reply to a request, and tell of it."""
        self.on_reply(request, reply)
        self._stage = type(request).__name__.lower()
        self._replies.append(reply)

    def _miss(self, failure: SiteFailed) -> None:
        self._failures.append(failure)
        self.on_failure(failure.card)

    def answered(self) -> list[Reply]:
        """Give the replies that count. Raises `SiteFailed` if they are too few."""
        least = len(self._replies) if self.quorum.least is None else self.quorum.least
        if len(self._replies) < least:
            raise self._failures[0]
        self._drop_late(least)
        return self._replies

    def _drop_late(self, least: int) -> None:
        """Count the slowest as absent while they took too long and enough others answered."""
        patience = self.quorum.patience
        for reply in sorted(self._replies, key=lambda reply: -reply.seconds):
            if not patience or reply.seconds <= patience or len(self._replies) <= least:
                return
            self._replies.remove(reply)
            sentence = f"answered after {reply.seconds:.1f} s; patience is {patience:g} s"
            card = FailureCard(reply.site, reply.round, self._stage, "TimeoutError", sentence)
            self._miss(SiteFailed(card))
