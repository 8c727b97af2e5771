"""Which choices go together, and why others do not: each refusal is one sentence."""

from collections.abc import Iterator, Mapping
from typing import TypeAlias

from grandrounds.methods.combine import Aggregation
from grandrounds.methods.method import Method
from grandrounds.topologies.cyclic import Cyclic
from grandrounds.topologies.star import Star
from grandrounds.topologies.topology import Topology

NOT_FEDERATED = ("local", "central", "pgan", "pix2pix")
Problem: TypeAlias = Iterator[str]


def method_problems(options: Mapping[str, object]) -> Problem:
    """Find options of a method that make no sense."""
    least = {"mu": 0, "strength": 0, "beta": 0, "head_epochs": 1}
    for name, low in least.items():
        value = options.get(name, low)
        if isinstance(value, int | float) and value < low:
            yield f"method.{name} is {value:g}; it must be {low} or more"
    for name in ("rate", "tau"):
        value = options.get(name, 1)
        if isinstance(value, int | float) and value <= 0:
            yield f"method.{name} is {value:g}; it must be above 0"
    for name in ("beta1", "beta2"):
        value = options.get(name, 0)
        if isinstance(value, int | float) and not 0 <= value < 1:
            yield f"method.{name} is {value:g}; it must be from 0 to below 1"


def aggregation_problems(method: Method, aggregation: Aggregation, sites: int) -> Problem:
    """Find an aggregation that fails, or that would change nothing."""
    kind, trim, shares = aggregation.kind, aggregation.trim, aggregation.shares
    plain = Aggregation(trim=trim)
    if aggregation != plain and (method.pooled or not method.shared):
        yield (
            f"aggregation would do nothing: method '{method.title}' averages nothing. "
            "Remove [aggregation], or choose a method that shares."
        )
    if aggregation != plain and method.combine.best:
        yield (
            'aggregation would do nothing with method.broadcast = "best": one site\'s update is '
            'taken as it is. Remove [aggregation], or set method.broadcast = "mean".'
        )
    if kind != "mean" and shares != "cases":
        yield (
            f'aggregation.shares = "{shares}" would do nothing: with kind = "{kind}" '
            "every site counts alike"
        )
    if kind == "trimmed" and not 0 < aggregation.dropped(sites) * 2 < sites:
        yield (
            f"aggregation.trim is {trim:g}, which drops {aggregation.dropped(sites)} of {sites} "
            "sites at each end; it must drop one or more and leave one or more"
        )
    if kind != "mean" and method.plan.controls:
        yield (
            f'method "scaffold" needs aggregation.kind = "mean", not "{kind}": '
            "its control variates are means over the sites"
        )


def pair_problems(
    kind: str, method: Method, aggregation: Aggregation, topology: Topology
) -> Problem:
    """Find why a method cannot go over a topology."""
    name = type(topology).__name__.lower()
    if kind in NOT_FEDERATED and not isinstance(topology, Star):
        yield (
            f'method "{kind}" sends nothing, so topology "{name}" would do nothing; '
            'choose topology.kind = "star"'
        )
    if isinstance(topology, Cyclic):
        yield from _cyclic_problems(kind, method, aggregation)
    if isinstance(topology, Star) and topology.require != "all":
        yield from _quorum_problems(kind, method)


def _cyclic_problems(kind: str, method: Method, aggregation: Aggregation) -> Problem:
    if method.plan.controls:
        yield (
            f'method "{kind}" makes no sense over topology "cyclic": control variates are means '
            "over sites that train side by side, and here each starts where the last one ended"
        )
    elif method.plan.contrast:
        yield (
            f'method "{kind}" makes no sense over topology "cyclic": its term compares what sites '
            "sent side by side, and here one model goes from site to site"
        )
    elif method.combine.best:
        yield (
            f'method "{kind}" with broadcast = "best" makes no sense over topology "cyclic": there '
            "is one model, and none to choose among"
        )
    elif method.combine.step.kind != "replace" or method.combine.step.rate != 1:
        yield (
            f'method "{kind}" makes no sense over topology "cyclic": its server step needs the '
            "mean of several updates, and here there is one model and no mean"
        )
    if aggregation != Aggregation(trim=aggregation.trim):
        yield 'aggregation would do nothing over topology "cyclic": nothing is averaged there'


def _quorum_problems(kind: str, method: Method) -> Problem:
    if method.plan.controls:
        yield (
            f'method "{kind}" needs topology.require = "all": its control variates must hold '
            "every site's drift"
        )
    if kind in NOT_FEDERATED:
        yield f'topology.require would do nothing for method "{kind}": no site waits for another'


def topology_problems(topology: Topology, sites: int) -> Problem:
    """Find options of a topology that make no sense."""
    if isinstance(topology, Star):
        yield from _star_problems(topology, sites)
    if isinstance(topology, Cyclic):
        yield from _turn_problems(topology)


def _star_problems(star: Star, sites: int) -> Problem:
    if star.require != "all" and not 1 <= star.require <= sites:
        yield (
            f'topology.require is {star.require}; it must be "all" or a number from 1 to {sites}, '
            "the sites of the study"
        )
    if star.patience < 0:
        yield f"topology.patience is {star.patience:g} s; it must be 0 (wait for ever) or more"
    if star.patience and star.require == "all":
        yield (
            'topology.patience would do nothing with topology.require = "all": '
            "every site is waited for"
        )


def _turn_problems(cyclic: Cyclic) -> Problem:
    for name, value in {"length": cyclic.length, "monitor": cyclic.monitor}.items():
        if value < 0:
            yield f"topology.{name} is {value}; it must be 0 or more"
    if cyclic.turn == "steps" and cyclic.length < 1:
        yield 'topology.turn = "steps" needs topology.length, the steps of a turn, 1 or more'
    if cyclic.proportional and cyclic.turn == "epochs":
        yield (
            'topology.proportional would do nothing with topology.turn = "epochs": '
            "an epoch is in proportion to the site already"
        )
