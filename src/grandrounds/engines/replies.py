"""Replies are collected in roster order, whatever order they arrive in; a quorum counts them."""

from collections.abc import Callable, Container, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TypeAlias, TypeVar

from grandrounds.algorithms.topology import Quorum
from grandrounds.core.errors import FailureCard, SiteFailed
from grandrounds.core.messages import Reply, Request

Answer = TypeVar("Answer")


def in_roster_order(
    roster: Sequence[str],
    asked: Container[str],
    results: Iterable[tuple[str, Answer | Exception]],
    *,
    fail_fast: bool,
) -> Iterator[tuple[str, Answer | Exception]]:
    """Yield results in roster order; with `fail_fast` a failure is raised as soon as it arrives."""
    turns = iter([name for name in roster if name in asked])
    turn = next(turns, None)
    waiting: dict[str, Answer | Exception] = {}
    for site, result in results:
        if fail_fast:
            unwrap(result)
        waiting[site] = result
        while turn in waiting:
            yield turn, waiting.pop(turn)
            turn = next(turns, None)


def unwrap(result: Answer | Exception) -> Answer:
    """Return a site's answer. Raises the error that it failed with."""
    if isinstance(result, Exception):
        raise result
    return result


Result: TypeAlias = Reply | Exception
OnReply: TypeAlias = Callable[[Request, Reply], None]
OnFailure: TypeAlias = Callable[[FailureCard], None]


def fail_if_missing(card: FailureCard) -> None:
    """Fail where a site is missing and nothing reports it. Raises `SiteFailed`."""
    raise SiteFailed(card)


@dataclass
class ReplyCollector:
    """Collects the replies of one `ask`; a failure stops it unless the quorum allows for it."""

    quorum: Quorum
    on_reply: OnReply
    on_failure: OnFailure
    _replies: list[Reply] = field(default_factory=list[Reply])
    _failures: list[SiteFailed] = field(default_factory=list[SiteFailed])
    _stage: str = ""

    @contextmanager
    def call(self) -> Generator[None, None, None]:
        """Count the `SiteFailed` of the call inside; raise it where every site is needed."""
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
        """Note the sites' answers in roster order, and return the replies that count.

        Raises `SiteFailed` for the first that fails, unless the quorum can do without it, and any
        other error among the results.
        """
        for site, result in in_roster_order(
            roster, requests, results, fail_fast=self.quorum.least is None
        ):
            with self.call():
                self.note(requests[site], unwrap(result))
        return self.answered()

    def note(self, request: Request, reply: Reply) -> None:
        """Note a reply to a request, and report it."""
        self.on_reply(request, reply)
        self._stage = type(request).__name__.lower()
        self._replies.append(reply)

    def _miss(self, failure: SiteFailed) -> None:
        self._failures.append(failure)
        self.on_failure(failure.card)

    def answered(self) -> list[Reply]:
        """Return the replies that count. Raises `SiteFailed` if they are too few."""
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
