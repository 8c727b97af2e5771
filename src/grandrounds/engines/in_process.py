"""All sites answer in this process, one after the other, as on a laptop.

While a site computes, the private state of the one before is written to the disk, and that of the
next is read.
"""

from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import TypeAlias

from grandrounds.algorithms.topology import EVERYONE, Links, Quorum
from grandrounds.core.errors import BadInput, SiteFailed
from grandrounds.core.failures import failure_card, log_failure
from grandrounds.core.ledger import COORDINATOR
from grandrounds.core.messages import Reply, Request
from grandrounds.core.weights import first_not_finite
from grandrounds.engines.replies import OnFailure, OnReply, ReplyCollector, fail_if_missing
from grandrounds.site.ledger import Recorder, ledger_entry
from grandrounds.site.site import Promise, Site

PendingReply: TypeAlias = tuple[Site, Request, Promise]


@dataclass(frozen=True)
class InProcessEngine:
    """The sites of a study in one process.

    `on_reply` is called with every reply as it arrives, `on_failure` with the card of every site
    that a quorum continues without. `ledgers` hear, by site, of what leaves it; who hosts a site
    for others to ask writes that down itself, and gives none.
    """

    sites: tuple[Site, ...]
    on_reply: OnReply
    on_failure: OnFailure = fail_if_missing
    ledgers: Mapping[str, Recorder] = field(default_factory=dict[str, Recorder])

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
            reply, receipt = self._recorded(site, request, promise, deliver_to)
            if receipt:
                for peer in self.sites:
                    if peer.name in deliver_to:
                        peer.receive(reply)
            collector.note(request, receipt or reply)

    def answered_by(
        self, name: str, request: Request, deliver_to: Sequence[str]
    ) -> tuple[Reply, Reply | None]:
        """Let one site answer; return its reply, and its receipt if the tensors go to peers.

        Raises `SiteFailed`.
        """
        [site] = [site for site in self.sites if site.name == name]
        return self._recorded(*_begin(site, request), deliver_to)

    def _recorded(
        self, site: Site, request: Request, promise: Promise, deliver_to: Sequence[str]
    ) -> tuple[Reply, Reply | None]:
        """Write a reply into its site's ledger; return it and its receipt, with where that stands.

        Without a ledger both are returned as they are.
        """
        reply = _finished(site, request, promise)
        peers = set(deliver_to) - {reply.site}
        receipt = reply.receipt(num_peers=len(peers)) if deliver_to else None
        if reply.site not in self.ledgers:
            return reply, receipt
        entry = ledger_entry(COORDINATOR, request, left=reply, to=deliver_to, receipt=receipt)
        with _errors_as_cards(site, request):
            head = self.ledgers[reply.site](entry)
        return replace(reply, ledger=head), receipt and replace(receipt, ledger=head)


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
