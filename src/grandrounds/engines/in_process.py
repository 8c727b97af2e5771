"""All sites answer in this process, one after the other, as on a laptop.

While a site computes, the private state of the one before is written to the disk, and that of the
next is read.
"""

from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeAlias

from grandrounds.algorithms.topology import EVERYONE, Links, Quorum
from grandrounds.core.errors import BadInput, SiteFailed
from grandrounds.core.failures import failure_card, log_failure
from grandrounds.core.messages import Reply, Request
from grandrounds.core.weights import first_not_finite
from grandrounds.engines.replies import OnFailure, OnReply, ReplyCollector, fail_if_missing
from grandrounds.site.site import Promise, Site

PendingReply: TypeAlias = tuple[Site, Request, Promise]


@dataclass(frozen=True)
class InProcessEngine:
    """The sites of a study in one process.

    `on_reply` is called with every reply as it arrives, `on_failure` with the card of every site
    that a quorum continues without.
    """

    sites: tuple[Site, ...]
    on_reply: OnReply
    on_failure: OnFailure = fail_if_missing

    links = Links.MESH

    @property
    def names(self) -> tuple[str, ...]:
        """Return the roster."""
        return tuple(site.name for site in self.sites)

    def ask(
        self,
        requests: Mapping[str, Request],
        *,
        deliver_to: Sequence[str] = (),
        quorum: Quorum = EVERYONE,
    ) -> list[Reply]:
        """Let each site answer in roster order, and return the replies.

        Raises `SiteFailed` with the failure card of the first that fails, unless the quorum can do
        without it.
        """
        collector = ReplyCollector(quorum, self.on_reply, self.on_failure)
        pending: list[PendingReply] = []
        try:
            asked = [site for site in self.sites if site.name in requests]
            for site, following in zip(asked, [*asked[1:], None], strict=True):
                if following is not None:
                    following.expect(requests[following.name])
                with collector.call():
                    pending.append(_begin(site, requests[site.name]))
                if len(pending) > 1:
                    self._finish(*pending.pop(0), collector, deliver_to)
            while pending:
                self._finish(*pending.pop(0), collector, deliver_to)
        except BaseException as error:
            for site, _, promise in pending:
                _wait_for_disk(site, promise, error)
            raise
        return collector.answered()

    def _finish(
        self,
        site: Site,
        request: Request,
        promise: Promise,
        collector: ReplyCollector,
        deliver_to: Sequence[str],
    ) -> None:
        with collector.call():
            reply = self._deliver(_finished(site, request, promise), deliver_to)
            collector.note(request, reply)

    def _deliver(self, reply: Reply, deliver_to: Sequence[str]) -> Reply:
        """Put the tensors into the peers' mailboxes, and return the receipt."""
        if not deliver_to:
            return reply
        for site in self.sites:
            if site.name in deliver_to:
                site.receive(reply)
        return reply.receipt(num_peers=len(set(deliver_to) - {reply.site}))


def _begin(site: Site, request: Request) -> PendingReply:
    with _errors_as_cards(site, request):
        return site, request, site.begin(request)


def _finished(site: Site, request: Request, promise: Promise) -> Reply:
    with _errors_as_cards(site, request):
        reply = promise()
        odd = first_not_finite(reply.weights)
        if odd:
            raise FloatingPointError(f"'{odd}' is not finite")
    return reply


def _wait_for_disk(site: Site, promise: Promise, stopped_by: BaseException) -> None:
    """Wait until the disk has finished; a second failure becomes a note of the first."""
    try:
        promise()
    except Exception as error:
        words = f"{type(error).__name__}: {error}" if site.tells_all else _told(site, error)
        stopped_by.add_note(f"site '{site.name}' then failed too: {words}")


@contextmanager
def _errors_as_cards(site: Site, request: Request) -> Generator[None, None, None]:
    """Turn an error at a site into its failure card; `BadInput` says enough by itself.

    A real site's error is logged here as it is; the journal, and others, get what they may know.
    """
    try:
        yield
    except BadInput as error:
        if site.tells_all:
            raise
        raise type(error)(_told(site, error), safe=error.safe) from error
    except Exception as error:
        if site.tells_all:
            raise SiteFailed(failure_card(site.name, request, error, str(error))) from error
        log_failure(site.name, error)
        raise SiteFailed(site.disclosure.card(request, error)) from error


def _told(site: Site, error: Exception) -> str:
    log_failure(site.name, error)
    return site.disclosure.message(error)
