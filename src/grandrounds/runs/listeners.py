"""The sites' replies become events here, which every listener receives."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Protocol, assert_never

from grandrounds.core.errors import FailureCard
from grandrounds.core.events import (
    Event,
    Listener,
    SiteExchanged,
    SiteMissed,
    SiteMonitored,
    SiteTested,
    SiteTrained,
    SiteTuned,
    SiteValidated,
)
from grandrounds.core.messages import (
    Adopt,
    AdvertiseKeys,
    Backward,
    Describe,
    Evaluate,
    Finish,
    Forward,
    Merge,
    Reply,
    Request,
    ShareKeys,
    Survey,
    Tail,
    Train,
    Tune,
    Unmask,
)
from grandrounds.core.weights import num_bytes
from grandrounds.engines.replies import fail_if_missing
from grandrounds.site.ledger import Recorder, received_entry, unrecorded
from grandrounds.study.study import Study


class ReplyListener(Protocol):
    """Receives the sites' replies, and learns which sites are missing."""

    def on_reply(self, request: Request, reply: Reply) -> None:
        """Receive a site's reply to a request."""
        ...

    def on_missing(self, card: FailureCard) -> None:
        """Receive the failure card of a site without which a quorum continues."""
        ...


class SilentListener:
    """Ignores replies in a worker process; the main process makes events of them."""

    def on_reply(self, request: Request, reply: Reply) -> None:
        """Ignore a reply."""

    def on_missing(self, card: FailureCard) -> None:
        """Raise `SiteFailed`: a worker process does not continue without a site."""
        fail_if_missing(card)


@dataclass(frozen=True)
class EventBus:
    """Turns an engine's replies into events, and passes them to all listeners.

    The coordinator's `ledger` hears of a reply before anyone else does.
    """

    listeners: Sequence[Listener]
    study: Study
    ledger: Recorder = unrecorded

    def emit(self, event: Event) -> None:
        """Pass an event to all listeners."""
        for listener in self.listeners:
            listener(event)

    def on_reply(self, request: Request, reply: Reply) -> None:
        """Record a site's reply, and emit its event, if it is one. Raises `DiskFailed`."""
        if self.ledger is not unrecorded:
            self.ledger(received_entry(reply.site, request, reply))
        event = event_for_reply(request, reply, self.study.task.metric)
        if event:
            self.emit(event)

    def on_missing(self, card: FailureCard) -> None:
        """Receive the failure card of a site without which a quorum continues."""
        self.emit(SiteMissed(**asdict(card)))


def event_for_reply(request: Request, reply: Reply, metric: str) -> Event | None:
    """Return the event of a site's reply, if it is one; `metric` is the validation metric."""
    match request:
        case Train() | Backward():
            return _trained(request, reply)
        case Merge() | Adopt() | AdvertiseKeys() | ShareKeys() | Unmask():
            stage = type(request).__name__.lower()
            sent, received = reply.sent, reply.received
            return SiteExchanged(reply.round, reply.site, stage, reply.seconds, sent, received)
        case Tune():
            return SiteTuned(
                reply.round, reply.site, reply.seconds, reply.steps, reply.digest, reply.metrics
            )
        case Evaluate():
            return _scored(request, reply, metric)
        case Describe():
            return None if request.round else reply.ready
        case Forward() | Tail() | Finish() | Survey():
            return None
        case _:
            assert_never(request)


def _trained(request: Train | Backward, reply: Reply) -> Event | None:
    if isinstance(request, Backward) and not request.last:
        return None
    return SiteTrained(
        round=reply.round,
        site=reply.site,
        seconds=reply.seconds,
        examples=reply.examples,
        steps=reply.steps,
        bytes_up=reply.sent,
        bytes_down=reply.received or num_bytes(request.weights),
        losses=reply.metrics,
        score=reply.score,
        bytes_full=reply.full,
        epsilon=reply.epsilon,
    )


def _scored(request: Evaluate, reply: Reply, metric: str) -> Event:
    round, site, seconds, cases = reply.round, reply.site, reply.seconds, reply.cases
    if request.cases:
        return SiteTested(round, site, seconds, cases, dict(reply.metrics))
    score = reply.metrics.get(metric, 0.0)
    down = num_bytes(request.weights) + reply.received
    if request.after:
        return SiteMonitored(round, request.after, site, seconds, cases, score, down)
    return SiteValidated(round, site, seconds, cases, score, down, reply.sent)
