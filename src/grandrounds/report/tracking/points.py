"""Events become points here: a run's beginning once, and a batch of points for each round."""

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Literal, TypeAlias

from grandrounds.core.events import (
    Event,
    Failed,
    Interrupted,
    RoundFinished,
    RunFinished,
    RunResumed,
    SiteMissed,
    SiteMonitored,
    SiteTested,
    SiteTrained,
    SiteTuned,
    SiteValidated,
    StoppedEarly,
)
from grandrounds.core.journal import bytes_by_site

Status: TypeAlias = Literal["FINISHED", "FAILED", "KILLED"]
EVERY_ROUND = "round/seconds"  # the point that each round has: it shows which rounds are logged
TEST = "test/"  # before the names of all test scores
TUNED = "tuned/"


@dataclass(frozen=True)
class Beginning:
    """A run's names, parameters and tags before it trains; `moment` is in unix seconds."""

    name: str
    title: str
    parameters: Mapping[str, str]
    tags: Mapping[str, str]
    moment: float


@dataclass(frozen=True)
class PointBatch:
    """The points of one round, or of the end of a run; `moment` is in unix seconds."""

    round: int
    moment: float
    metrics: Mapping[str, float] = field(default_factory=dict[str, float])
    tags: Mapping[str, str] = field(default_factory=dict[str, str])
    status: Status | None = None


@dataclass(frozen=True)
class Logged:
    """What a tracker has of a run already: its rounds, whether it was tested, and its status."""

    rounds: frozenset[int] = frozenset()
    tested: bool = False
    status: str = "RUNNING"

    def lacks(self, batch: PointBatch) -> bool:
        """Tell whether the points of a batch are new."""
        if EVERY_ROUND in batch.metrics:
            return batch.round not in self.rounds
        return bool(batch.metrics) and not self.tested

    def with_points(self, batch: PointBatch) -> "Logged":
        """Return this with a batch's points logged."""
        if EVERY_ROUND in batch.metrics:
            return replace(self, rounds=self.rounds | {batch.round})
        return replace(self, tested=True)


class Gathering:
    """Gathers events until a round is finished; a resume drops those of an unfinished round."""

    def __init__(self) -> None:
        self._metrics = defaultdict[str, float](float)
        self._tags: dict[str, str] = {}
        self._tested = 0

    def hear(self, moment: float, event: Event) -> PointBatch | None:
        """Receive an event; return the batch that it completes, if it does."""
        match event:
            case RunResumed():
                self._taken()
            case RoundFinished():
                return self._round(moment, event)
            case RunFinished():
                return self._end(moment, event)
            case Interrupted():
                return PointBatch(event.round, moment, status="KILLED")
            case Failed():
                tags = {
                    "failed": f"{event.site}, round {event.round}, {event.stage}: {event.error}"
                }
                return PointBatch(event.round, moment, tags=tags, status="FAILED")
            case _:
                self._gather(event)
        return None

    def _round(self, moment: float, event: RoundFinished) -> PointBatch:
        scored = {} if event.score is None else {"round/validation": event.score}
        metrics = self._taken() | scored | {"round/best": event.best_round}
        tags = {"digest": event.digest, f"digest.{event.round}": event.digest}
        return PointBatch(event.round, moment, metrics | {EVERY_ROUND: event.seconds}, tags)

    def _end(self, moment: float, event: RunFinished) -> PointBatch:
        last = {_at_the_end(name): value for name, value in self._taken().items()}
        metrics = last | {
            "run/seconds": event.seconds,
            "run/peak_memory": event.peak_memory,
        }
        tags = {"best_round": str(event.best_round), "digest.last_model": event.digest}
        return PointBatch(
            self._tested or event.round, moment, metrics, self._tags | tags, "FINISHED"
        )

    def _taken(self) -> dict[str, float]:
        taken = dict(self._metrics)
        self._metrics.clear()
        return taken

    def _gather(self, event: Event) -> None:
        match event:
            case SiteTrained():
                self._metrics |= _losses("loss/", event)
                self._metrics[f"seconds/{event.site}"] = event.seconds
            case SiteTuned():
                self._metrics |= _losses(TUNED, event)
            case SiteValidated() if event.cases:
                self._metrics[f"validation/{event.site}"] = event.score
            case SiteMonitored() if event.cases:
                self._metrics[f"monitored/{event.site}/after/{event.after}"] = event.score
            case SiteMissed():
                self._metrics[f"missed/{event.site}"] = 1
            case StoppedEarly():
                self._tags["stopped_early"] = str(event.round)
            case SiteTested():
                self._tested = event.round
                self._metrics |= {f"{TEST}{event.site}/{k}": v for k, v in event.summary.items()}
            case _:
                pass
        self._count_bytes(event)

    def _count_bytes(self, event: Event) -> None:
        for (_, site), (up, down) in bytes_by_site([event]).items():
            self._metrics[f"bytes_down/{site}"] += down
            if not isinstance(event, SiteMonitored):  # which has no bytes up
                self._metrics[f"bytes_up/{site}"] += up


def _at_the_end(name: str) -> str:
    """Return the name of a point after the last round, apart from that round's own points."""
    return name if name.startswith((TEST, TUNED)) else f"ending/{name}"


def _losses(word: str, event: SiteTrained | SiteTuned) -> dict[str, float]:
    return {f"{word}{event.site}/{name}": loss for name, loss in event.losses.items()}
