"""Parameter groups decide which tensors leave a site, which stay and which are reset."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

from torch import Tensor, nn

from grandrounds.core.errors import BadStudy
from grandrounds.core.events import GroupPolicy, PolicySet
from grandrounds.core.weights import Filter, num_bytes, select

UNIONS = ("all", "head", "upper")  # these join groups that are described one by one


@dataclass(frozen=True)
class Sharing:
    """All that leaves a site, and all that comes back.

    `shared` and `private` name parameter groups of the task: a tensor travels if a shared group
    holds it and no private group does. `sends` and `receives` name sets of tensors that travel
    beside the model, up and down. With `shows_updates` a site is sent what other sites sent.
    `pooled` trains one model on all sites' data in one place: a comparison, no federation.
    """

    shared: tuple[str, ...] = ("all",)
    private: tuple[str, ...] = ()
    sends: tuple[str, ...] = ()
    receives: tuple[str, ...] = ()
    shows_updates: bool = False
    pooled: bool = False

    @property
    def federates(self) -> bool:
        """Tell whether anything leaves a site at all."""
        return bool(self.shared) and not self.pooled

    @property
    def alone(self) -> bool:
        """Tell whether every site trains a model of its own, of which nothing leaves it."""
        return not self.shared and not self.pooled

    def travels(self, groups: Mapping[str, Filter]) -> Filter:
        """Return the filter of what leaves a site. Raises `BadStudy` for an unknown group."""
        for name in (*self.shared, *self.private):
            if name not in groups:
                known = ", ".join(groups)
                raise BadStudy(f"method: no parameter group '{name}'; this task has {known}")
        shared = [groups[name] for name in self.shared]
        private = [groups[name] for name in self.private]
        return lambda name: any(f(name) for f in shared) and not any(f(name) for f in private)


def sharing_filter(
    model: nn.Module, groups: Mapping[str, Filter], sharing: Sharing, *, norm_buffers: str
) -> Filter:
    """Return the filter of the tensors that leave a site.

    Running statistics follow their layer unless `norm_buffers` says otherwise. Integer counters
    never travel: 3.5 batches is not a count. Raises `BadStudy` where the method would share nothing
    by mistake.
    """
    base = sharing.travels(groups)
    buffers = {name for name, _ in model.named_buffers()}
    counters = {n for n, t in model.named_buffers() if not t.is_floating_point()}
    statistics = {name for name in buffers - counters if groups["norm"](name)}
    anywhere = norm_buffers == "shared" and bool(sharing.shared)

    def leaves(name: str) -> bool:
        if name in counters:
            return False
        if name in statistics and norm_buffers != "follow":
            return anywhere
        return base(name)

    if sharing.shared and not any(leaves(name) for name in model.state_dict()):
        raise BadStudy(
            f"method: the groups {', '.join(sharing.shared)} hold no tensor of this network"
        )
    for name in sharing.private:
        if name != "norm" and not select(model.state_dict(), groups[name]):
            raise BadStudy(
                f"method: the group '{name}' that it keeps at the site holds no tensor of this "
                "network, so it would do nothing"
            )
    return leaves


def describe_sharing(
    model: nn.Module,
    groups: Mapping[str, Filter],
    travels: Filter,
    *,
    norm_buffers: str,
    validate_every: int,
) -> PolicySet:
    """Return the policy of each parameter group, and what a round costs a site in bytes."""
    state, trained = model.state_dict(), dict[str, Tensor](model.named_parameters())
    described = {n: g for n, g in groups.items() if n not in UNIONS}
    policies = [_group(name, select(trained, group), travels) for name, group in described.items()]
    policies += _statistics(model, travels, reset=norm_buffers == "reset")
    one_way = num_bytes(select(state, travels))
    return PolicySet(
        groups=tuple(group for group in policies if group.tensors),
        norm_buffers=norm_buffers
        if any(True for _ in model.named_buffers())
        else "none in this network",
        bytes_per_round=2 * one_way + one_way // validate_every,
    )


def _statistics(model: nn.Module, travels: Filter, *, reset: bool) -> list[GroupPolicy]:
    """Return the policy of batch norm's running statistics, which may differ from their layer's."""
    tensors = {n: t for n, t in model.named_buffers() if t.is_floating_point()}
    if not tensors:
        return []
    group = _group("running statistics", tensors, travels)
    return [replace(group, policy="reset") if reset else group]


def _group(name: str, tensors: Mapping[str, Tensor], travels: Filter) -> GroupPolicy:
    leaving = [travels(tensor) for tensor in tensors]
    policy = "shared" if all(leaving) else "private" if not any(leaving) else "partly shared"
    return GroupPolicy(name, policy, len(tensors), sum(t.numel() for t in tensors.values()))
