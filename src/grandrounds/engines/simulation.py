"""All sites in this process, one after the other: the engine of a laptop.

While one site's private state goes to the disk, the next site computes.
"""

from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeAlias

from grandrounds.errors import BadInput, FailureCard, SiteFailed
from grandrounds.messages import Reply, Request
from grandrounds.site import Promise, Site
from grandrounds.weights import first_not_finite

OnReply: TypeAlias = Callable[[Request, Reply], None]
Begun: TypeAlias = tuple[str, Request, Promise]

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
        begun: list[Begun] = []
        try:
            for site in (site for site in self.sites if site.name in requests):
                begun.append(self._begin(site, requests[site.name]))
                if len(begun) > 1:
                    replies.append(self._finish(*begun.pop(0)))
            while begun:
                replies.append(self._finish(*begun.pop(0)))
        except BaseException as error:
            for site, _, promise in begun:
                _settle(site, promise, error)
            raise
        return replies

    def _begin(self, site: Site, request: Request) -> Begun:
        with _carded(site.name, request):
            return site.name, request, site.begin(request)

    def _finish(self, site: str, request: Request, promise: Promise) -> Reply:
        with _carded(site, request):
            reply = promise()
            odd = first_not_finite(reply.weights)
            if odd:
                raise FloatingPointError(f"'{odd}' is not finite")
        self.on_reply(request, reply)
        return reply


def _settle(site: str, promise: Promise, stopped_by: BaseException) -> None:
    """Let the disk finish before anyone else writes there; a second failure is noted, not told."""
    try:
        promise()
    except Exception as error:
        stopped_by.add_note(f"site '{site}' then failed too: {type(error).__name__}: {error}")


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
