"""All sites in this process, one after the other: the engine of a laptop."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TypeAlias

from grandrounds.errors import BadInput, FailureCard, SiteFailed
from grandrounds.messages import Reply, Request
from grandrounds.site import Site
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
        asked = [site for site in self.sites if site.name in requests]
        return [self._ask(site, requests[site.name]) for site in asked]

    def _ask(self, site: Site, request: Request) -> Reply:
        try:
            reply = site.answer(request)
        except BadInput:
            raise
        except Exception as error:
            raise SiteFailed(_card(site.name, request, error)) from error
        odd = first_not_finite(reply.weights)
        if odd:
            raise SiteFailed(
                _card(site.name, request, FloatingPointError(f"'{odd}' is not finite"))
            )
        self.on_reply(request, reply)
        return reply


def _card(site: str, request: Request, error: Exception) -> FailureCard:
    kind = type(error).__name__
    stage = type(request).__name__.lower()
    return FailureCard(site, request.round, stage, kind, str(error), HINTS.get(kind, ""))
