"""All sites in this process, one after the other: the engine of a laptop.

While one site's private state goes to the disk, the next site computes.
"""

from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TypeAlias

from grandrounds.errors import BadInput, FailureCard, SiteFailed
from grandrounds.messages import Reply, Request
from grandrounds.site import Promise, Site
from grandrounds.weights import first_not_finite

OnReply: TypeAlias = Callable[[Request, Reply], None]

HINTS = {
    "FloatingPointError": "Lower training.learning_rate, or run in fp32 (training.precision).",
    "MemoryError": "Lower training.batch_size or task.width.",
    "OutOfMemoryError": "Lower training.batch_size or task.width.",
    "DiskFailed": "The rounds before this one are safe.",
}


@dataclass(frozen=True)
class Simulation:
    """The sites of a study in one process; `on_reply` hears of every reply as it comes."""

    sites: tuple[Site, ...]
    on_reply: OnReply

    @property
    def names(self) -> tuple[str, ...]:
        """Give the roster."""
        return tuple(site.name for site in self.sites)

    def ask(self, requests: Mapping[str, Request]) -> list[Reply]:
        """Let each site answer, in roster order.

        Raises `SiteFailed` with the failure card of the first that fails.
        """
        replies: list[Reply] = []
        waiting: Callable[[], Reply] | None = None
        for site in (site for site in self.sites if site.name in requests):
            begun = partial(self._finish, site, requests[site.name], self._begin(site, requests))
            if waiting:
                replies.append(waiting())
            waiting = begun
        return [*replies, waiting()] if waiting else replies

    def _begin(self, site: Site, requests: Mapping[str, Request]) -> Promise:
        with _carded(site.name, requests[site.name]):
            return site.begin(requests[site.name])

    def _finish(self, site: Site, request: Request, promise: Promise) -> Reply:
        with _carded(site.name, request):
            reply = promise()
            odd = first_not_finite(reply.weights)
            if odd:
                raise FloatingPointError(f"'{odd}' is not finite")
        self.on_reply(request, reply)
        return reply


@contextmanager
def _carded(site: str, request: Request) -> Generator[None, None, None]:
    """Turn what goes wrong at a site into its failure card; bad input says enough by itself."""
    try:
        yield
    except BadInput:
        raise
    except Exception as error:
        raise SiteFailed(_card(site, request, error)) from error


def _card(site: str, request: Request, error: Exception) -> FailureCard:
    kind = type(error).__name__
    stage = type(request).__name__.lower()
    return FailureCard(site, request.round, stage, kind, str(error), HINTS.get(kind, ""))
