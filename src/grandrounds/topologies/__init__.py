"""Topologies: who talks to whom in a round, and the only view that they have of an engine."""

from collections.abc import Callable
from dataclasses import replace

from grandrounds.topologies.cyclic import Cyclic
from grandrounds.topologies.split import Split
from grandrounds.topologies.star import Star
from grandrounds.topologies.swarm import Swarm
from grandrounds.topologies.topology import Topology

TOPOLOGIES: dict[str, Callable[..., Topology]] = {
    "star": Star,
    "swarm": Swarm,
    "cyclic": Cyclic,
    "split": Split,
}


def seeded(topology: Topology, seed: int) -> Topology:
    """Give a topology that draws leaders or orders the study's seed."""
    return (
        replace(topology, seed=seed) if isinstance(topology, Swarm | Cyclic | Split) else topology
    )


__all__ = ["TOPOLOGIES", "Cyclic", "Split", "Star", "Swarm", "seeded"]
