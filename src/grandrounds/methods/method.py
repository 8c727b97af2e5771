"""A method is a value: what travels, how a site trains, how updates become the next state."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TypeAlias

from grandrounds.checkpoints import State
from grandrounds.errors import BadStudy
from grandrounds.messages import LocalPlan, Reply
from grandrounds.weights import Filter, mean

Combine: TypeAlias = Callable[[State, Sequence[Reply]], State]


def weighted_mean(state: State, replies: Sequence[Reply]) -> State:
    """Replace the weights by the sites' mean, each with the share n_k / n of its training examples.

    McMahan et al. 2017, algorithm 1.
    """
    average = mean([reply.weights for reply in replies], [reply.examples for reply in replies])
    return replace(state, weights=average, round=state.round + 1)


@dataclass(frozen=True)
class Method:
    """What is shared, how a site trains, how updates are combined; `title` is its name in tables.

    `shared` and `private` name parameter groups of the task; a tensor travels if a shared group
    holds it and no private group does. `pooled` trains one model on all sites' data in one place:
    the centralised comparison, no federation.
    """

    title: str
    shared: tuple[str, ...] = ()
    private: tuple[str, ...] = ()
    plan: LocalPlan = field(default_factory=LocalPlan)
    combine: Combine = weighted_mean
    pooled: bool = False

    def travels(self, groups: Mapping[str, Filter]) -> Filter:
        """Build the filter of what leaves a site. Raises `BadStudy` for an unknown group."""
        for name in (*self.shared, *self.private):
            if name not in groups:
                known = ", ".join(groups)
                raise BadStudy(f"method: no parameter group '{name}'; this task has {known}")
        shared = [groups[name] for name in self.shared]
        private = [groups[name] for name in self.private]
        return lambda name: any(f(name) for f in shared) and not any(f(name) for f in private)
