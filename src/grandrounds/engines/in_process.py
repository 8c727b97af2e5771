"""All sites in this process, one after the other: the engine of a laptop.

While one site's private state goes to the disk, the next site computes.
"""

from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeAlias

from grandrounds.algorithms.topology import EVERYONE, Links, Quorum
from grandrounds.core.errors import BadInput, SiteFailed
from grandrounds.core.failures import failure_card
from grandrounds.core.messages import Reply, Request
from grandrounds.core.weights import first_not_finite
from grandrounds.engines.replies import OnFailure, OnReply, ReplyCollector, fail_if_missing
from grandrounds.site.site import Promise, Site

Begun: TypeAlias = tuple[Site, Request, Promise]


@dataclass(frozen=True)
class InProcessEngine:
    """The sites of a study in one process.

    `on_reply` hears of every reply as it comes; `on_failure` of every site that a quorum goes on
    without.
    """

    sites: tuple[Site, ...]
    on_reply: OnReply
    on_failure: OnFailure = fail_if_missing

    links = Links.MESH

    @property
    def names(self) -> tuple[str, ...]:
        """Give the roster."""
        return tuple(site.name for site in self.sites)

    def ask(
        self,
        requests: Mapping[str, Request],
        *,
        deliver_to: Sequence[str] = (),
        quorum: Quorum = EVERYONE,
    ) -> list[Reply]:
        """Let each site answer, in roster order.

        Raises `SiteFailed` with the failure card of the first that fails, unless the quorum can do
        without it.
        """
        roll = ReplyCollector(quorum, self.on_reply, self.on_failure)
        begun: list[Begun] = []
        try:
            for site in (site for site in self.sites if site.name in requests):
                with roll.call():
                    begun.append(_begin(site, requests[site.name]))
                if len(begun) > 1:
                    self._finish(*begun.pop(0), roll, deliver_to)
            while begun:
                self._finish(*begun.pop(0), roll, deliver_to)
        except BaseException as error:
            for site, _, promise in begun:
                _settle(site, promise, error)
            raise
        return roll.answered()

    def _finish(
        self,
        site: Site,
        request: Request,
        promise: Promise,
        roll: ReplyCollector,
        deliver_to: Sequence[str],
    ) -> None:
        with roll.call():
            reply = self._delivered(_finished(site, request, promise), deliver_to)
            roll.note(request, reply)

    def _delivered(self, reply: Reply, deliver_to: Sequence[str]) -> Reply:
        """Put the tensors into the peers' mailboxes, and keep the receipt."""
        if not deliver_to:
            return reply
        for site in self.sites:
            if site.name in deliver_to:
                site.receive(reply)
        return reply.receipt(num_peers=len(set(deliver_to) - {reply.site}))


def _begin(site: Site, request: Request) -> Begun:
    with _carded(site, request):
        return site, request, site.begin(request)


def _finished(site: Site, request: Request, promise: Promise) -> Reply:
    with _carded(site, request):
        reply = promise()
        odd = first_not_finite(reply.weights)
        if odd:
            raise FloatingPointError(f"'{odd}' is not finite")
    return reply


def _settle(site: Site, promise: Promise, stopped_by: BaseException) -> None:
    """Let the disk finish before anyone else writes there; a second failure is noted, not told."""
    try:
        promise()
    except Exception as error:
        text = f"site '{site.name}' then failed too: {type(error).__name__}: {error}"
        stopped_by.add_note(site.redact(text))


@contextmanager
def _carded(site: Site, request: Request) -> Generator[None, None, None]:
    """Turn what goes wrong at a site into its failure card; bad input says enough by itself."""
    try:
        yield
    except BadInput as error:
        raise type(error)(site.redact(str(error))) from error
    except Exception as error:
        card = failure_card(site.name, request, error, site.redact(str(error)))
        raise SiteFailed(card) from error
