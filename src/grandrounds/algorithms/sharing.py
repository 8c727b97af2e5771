"""Parameter groups decide which tensors leave a site, which stay and which are reset."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

from torch import Tensor, nn

from grandrounds.core.errors import BadStudy
from grandrounds.core.events import GroupPolicy, PolicySet
from grandrounds.core.weights import Filter, name_in, num_bytes, select

UNIONS = ("all", "head", "upper")  # these join groups that are described one by one
FIXED_GROUP = "fixed"  # what never changes and never travels, where a task has such


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
    fixed = groups.get(FIXED_GROUP, name_in(frozenset()))

    def leaves(name: str) -> bool:
        if name in counters or fixed(name):
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


def described_groups(model: nn.Module, groups: Mapping[str, Filter]) -> dict[str, Filter]:
    """Return the groups that are described one by one.

    The head is among them where no other group but "norm" holds one of its tensors.
    """
    described = {name: group for name, group in groups.items() if name not in UNIONS}
    head = groups.get("head", name_in(frozenset()))
    parts = [group for name, group in described.items() if name != "norm"]
    names = [name for name, _ in model.named_parameters() if head(name)]
    alone = not any(part(name) for part in parts for name in names)
    return {n: g for n, g in groups.items() if n in described or (n == "head" and alone)}


def group_names(model: nn.Module, groups: Mapping[str, Filter]) -> dict[str, str]:
    """Map each parameter of a network to the one group that it is counted in.

    A parameter that only unions hold is in "all".
    """
    parts = {n: group for n, group in described_groups(model, groups).items() if n != "norm"}
    return {
        name: next((part for part, holds in parts.items() if holds(name)), "all")
        for name, _ in model.named_parameters()
    }


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
    described = described_groups(model, groups)
    fixed = groups.get(FIXED_GROUP, name_in(frozenset()))
    policies = [_group(name, select(trained, group), travels) for name, group in described.items()]
    policies = [replace(g, policy="fixed") if g.group == FIXED_GROUP else g for g in policies]
    policies += _statistics(model, travels, fixed, reset=norm_buffers == "reset")
    one_way = num_bytes(select(state, travels))
    return PolicySet(
        groups=tuple(group for group in policies if group.tensors),
        norm_buffers=norm_buffers
        if any(True for _ in model.named_buffers())
        else "none in this network",
        bytes_per_round=2 * one_way + one_way // validate_every,
    )


def trained_groups(
    model: nn.Module, groups: Mapping[str, Filter], travels: Filter
) -> Mapping[str, frozenset[str]]:
    """Map each parameter group, and "all", to its trained tensors that leave a site, if any."""
    leaving = [name for name, _ in model.named_parameters() if travels(name)]
    described = described_groups(model, groups)
    chosen = {name: holds for name, holds in groups.items() if name == "all" or name in described}
    found = {name: frozenset(filter(holds, leaving)) for name, holds in chosen.items()}
    return {name: tensors for name, tensors in found.items() if tensors}


def _statistics(
    model: nn.Module, travels: Filter, fixed: Filter, *, reset: bool
) -> list[GroupPolicy]:
    """Return the policy of batch norm's running statistics, which may differ from their layer's."""
    buffers = {n: t for n, t in model.named_buffers() if t.is_floating_point()}
    tensors = {name: tensor for name, tensor in buffers.items() if not fixed(name)}
    if not tensors:
        return []
    group = _group("running statistics", tensors, travels)
    return [replace(group, policy="reset") if reset else group]


def _group(name: str, tensors: Mapping[str, Tensor], travels: Filter) -> GroupPolicy:
    leaving = [travels(tensor) for tensor in tensors]
    policy = "shared" if all(leaving) else "private" if not any(leaving) else "partly shared"
    return GroupPolicy(name, policy, len(tensors), sum(t.numel() for t in tensors.values()))
