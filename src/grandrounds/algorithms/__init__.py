"""Methods and topologies define what happens in a round; a study file names them.

Nothing here knows a task, a dataset, a model or an engine.
"""

from collections.abc import Callable
from dataclasses import replace

from grandrounds.algorithms.cyclic import Cyclic
from grandrounds.algorithms.methods import METHODS
from grandrounds.algorithms.split import Split
from grandrounds.algorithms.star import Star
from grandrounds.algorithms.swarm import Swarm
from grandrounds.algorithms.topology import Topology

TOPOLOGIES: dict[str, Callable[..., Topology]] = {
    "star": Star,
    "swarm": Swarm,
    "cyclic": Cyclic,
    "split": Split,
}


def with_seed(topology: Topology, seed: int) -> Topology:
    """Return the topology with the study's seed, where it draws leaders or orders."""
    return (
        replace(topology, seed=seed) if isinstance(topology, Swarm | Cyclic | Split) else topology
    )


__all__ = ["METHODS", "TOPOLOGIES", "with_seed"]
