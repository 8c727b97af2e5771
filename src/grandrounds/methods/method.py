"""A method is a value: what travels, how a site trains, how updates become the next state."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from grandrounds.checkpoints import State
from grandrounds.errors import BadStudy
from grandrounds.messages import LocalPlan
from grandrounds.methods.combine import CONTROL, UPLOAD, Combine
from grandrounds.weights import OPTIMIZER, Filter, Weights, select, starting_with


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
    combine: Combine = field(default_factory=Combine)
    pooled: bool = False

    def broadcast(self, state: State, site: str) -> Weights:
        """Give what a site needs to train from a state: the weights, and what a plan adds."""
        plan, told = self.plan, self.plan.contrast > 0 and self.plan.negatives == "all"
        names = (CONTROL,) * plan.controls + (OPTIMIZER,) * plan.carries + (UPLOAD,) * told
        own = self.combine.of_site(state.weights, site)
        return own | select(state.memory, starting_with(*names))

    def travels(self, groups: Mapping[str, Filter]) -> Filter:
        """Build the filter of what leaves a site. Raises `BadStudy` for an unknown group."""
        for name in (*self.shared, *self.private):
            if name not in groups:
                known = ", ".join(groups)
                raise BadStudy(f"method: no parameter group '{name}'; this task has {known}")
        shared = [groups[name] for name in self.shared]
        private = [groups[name] for name in self.private]
        return lambda name: any(f(name) for f in shared) and not any(f(name) for f in private)
