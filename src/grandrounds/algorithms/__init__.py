"""What happens in a round, at the coordinator: methods and topologies, each a word in a study file.

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
    """Give a topology that draws leaders or orders the study's seed."""
    return (
        replace(topology, seed=seed) if isinstance(topology, Swarm | Cyclic | Split) else topology
    )


__all__ = ["METHODS", "TOPOLOGIES", "with_seed"]
