"""The sites' replies become events here, and every listener is told of each."""

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
    Backward,
    Describe,
    Evaluate,
    Finish,
    Forward,
    Merge,
    Reply,
    Request,
    Tail,
    Train,
    Tune,
)
from grandrounds.core.weights import num_bytes
from grandrounds.engines.replies import fail_if_missing
from grandrounds.study.study import Study


class ReplyListener(Protocol):
    """Who hears what comes from the sites."""

    def on_reply(self, request: Request, reply: Reply) -> None:
        """Hear of a reply."""
        ...

    def on_missing(self, card: FailureCard) -> None:
        """Hear of a site that a quorum goes on without."""
        ...


class SilentListener:
    """Nobody hears a site in a worker's process; what it sends is heard where it arrives."""

    def on_reply(self, request: Request, reply: Reply) -> None:
        """Leave a reply untold."""

    def on_missing(self, card: FailureCard) -> None:
        """Refuse to go on without a site. Raises `SiteFailed`."""
        fail_if_missing(card)


@dataclass(frozen=True)
class EventBus:
    """Turns what an engine hears into events, and tells all listeners."""

    listeners: Sequence[Listener]
    study: Study

    def emit(self, event: Event) -> None:
        """Tell an event to everyone."""
        for listener in self.listeners:
            listener(event)

    def on_reply(self, request: Request, reply: Reply) -> None:
        """Hear of a site's reply as it comes."""
        event = event_for_reply(request, reply, self.study.task.metric)
        if event:
            self.emit(event)

    def on_missing(self, card: FailureCard) -> None:
        """Hear of a site that a quorum goes on without."""
        self.emit(SiteMissed(**asdict(card)))


def event_for_reply(request: Request, reply: Reply, metric: str) -> Event | None:
    """Give the event that a site's reply is, if it is one; `metric` is what validation watches."""
    match request:
        case Train() | Backward():
            return _trained(request, reply)
        case Merge() | Adopt():
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
        case Forward() | Tail() | Finish():
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
