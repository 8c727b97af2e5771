"""What an engine hears, as events."""

from typing import assert_never

from grandrounds.events import (
    Event,
    SiteExchanged,
    SiteMonitored,
    SiteTested,
    SiteTrained,
    SiteTuned,
    SiteValidated,
)
from grandrounds.messages import (
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
from grandrounds.weights import num_bytes


def event_of(request: Request, reply: Reply, metric: str) -> Event | None:
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
