"""These checks find which method, topology and aggregation the guards of a study cannot serve."""

from collections.abc import Iterator, Mapping

from grandrounds.algorithms.aggregation import MEASURED
from grandrounds.algorithms.method import Method
from grandrounds.algorithms.relay import Relay
from grandrounds.algorithms.star import Star
from grandrounds.algorithms.swarm import Swarm
from grandrounds.algorithms.topology import Topology
from grandrounds.privacy.guard import Demand
from grandrounds.privacy.settings import Exchange
from grandrounds.study.record_privacy import record_problems
from grandrounds.study.study import Study

_OVER = '{guard} makes no sense over topology "{topology}": {reason}'
_WITH = '{guard} makes no sense with method "{method}": {reason}'
UNSERVED: Mapping[Demand, str] = {  # what is said where a study does not offer what a guard needs
    "side by side": f'{_OVER}; choose topology.kind = "star" or "swarm"',
    "one mean": f'{_OVER}; choose topology.kind = "star" or "swarm"',
    "mean": '{guard} needs aggregation.kind = "mean", not "{aggregation}": {reason}',
    "uniform shares": '{guard} needs aggregation.shares = "uniform", not "{shares}": {reason}',
    "rate of 1": '{guard} makes no sense with aggregation.rate = "measured": {reason}. Set '
    "aggregation.rate = 1.0",
    "every site": '{guard} needs topology.require = "all": {reason}',
    "common start": "{guard} needs training.first_broadcast = true: {reason}",
    "the mean alone": f"{_WITH}",
    "no statistics": '{guard} needs training.norm_buffers = "private" or "reset": {reason}',
    "star or swarm": '{guard} is not built over topology "{topology}": {reason}; choose '
    'topology.kind = "star" or "swarm"',
    "counted shares": '{guard} needs aggregation.shares = "cases" or "uniform": {reason}',
    "full exchange": '{guard} needs exchange.kind = "full": {reason}',
    "three sites": "{guard} needs three sites or more that train: {reason}",
    "no cosines": "{guard} makes no sense with aggregation.cosines_every: {reason}",
}


def protection_problems(
    study: Study, method: Method, topology: Topology, *, statistics: bool
) -> Iterator[str]:
    """Yield why the study's guards cannot serve the rest of it, or would do nothing.

    `statistics` tells whether the network keeps running statistics. Raises `BadStudy` for options
    that are out of range.
    """
    study.privacy.check()
    (study.exchange or Exchange()).check()
    yield from record_problems(study, method, topology, statistics=statistics)
    lacks = _lacking(study, method, topology, statistics=statistics)
    for guard in method.guards.steps:
        if not method.sharing().federates:
            yield f'{guard.word} would do nothing: method "{study.method.kind}" sends no update'
        for demand, reason in guard.needs().items():
            if demand in lacks:
                yield UNSERVED[demand].format(
                    guard=guard.word,
                    reason=reason,
                    topology=study.topology.kind,
                    method=study.method.kind,
                    aggregation=study.aggregation.kind,
                    shares=study.aggregation.shares,
                )


def _lacking(
    study: Study, method: Method, topology: Topology, *, statistics: bool
) -> frozenset[Demand]:
    """Return what the study does not offer."""
    aggregation, sharing = study.aggregation, method.sharing()
    groups = isinstance(topology, Relay) and topology.groups > 1
    reads = bool(sharing.sends) or sharing.shows_updates or "own updates" in method.needs()
    stays = "norm" in sharing.private or study.training.norm_buffers in ("private", "reset")
    found: Mapping[Demand, bool] = {
        "side by side": not topology.averages,
        "one mean": groups,
        "mean": aggregation.kind != "mean",
        "uniform shares": aggregation.shares != "uniform",
        "rate of 1": study.server_rate == MEASURED,
        "every site": topology.quorum.least is not None,
        "common start": not study.training.first_broadcast,
        "the mean alone": reads,
        "no statistics": statistics and not stays,
        "star or swarm": not isinstance(topology, Star | Swarm),
        "counted shares": aggregation.shares == "given",
        "full exchange": (study.exchange or Exchange()).kind != "full",
        "three sites": len(study.trainers) < 3,
        "no cosines": aggregation.cosines_every is not None,
    }
    return frozenset(demand for demand, lacks in found.items() if lacks)
