"""Which tensors may cross between a site and the others: names, shapes, types and bytes."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property

from torch import Tensor, nn

from grandrounds.algorithms.sharing import Sharing
from grandrounds.core.messages import Backward, Forward, Merge, Request, Tail, Train
from grandrounds.core.weights import OPTIMIZER, Filter, Weights, first_not_finite, num_bytes
from grandrounds.privacy.guard import Guards, Layout, bytes_of

CUT, LABEL = "cut/", "label/"  # before the names of what crosses the cut, and of labels that go up
SLACK = 2**16  # bytes that sets may have beyond the model's own size, for a few numbers


@dataclass(frozen=True)
class TensorPolicy:
    """What crosses between one site and the others, as the accepted study says.

    `model` maps the tensors that travel to their shapes and types, `private` names those that stay.
    `sharing` names the sets that travel beside the model; `moments` tells whether the optimiser's
    state does. `sites` is the roster: what other sites sent bears their names. `labels` tells
    whether labels go up with what crosses a cut. `guards` say in what form the model leaves a site.
    """

    model: Layout
    private: frozenset[str]
    sharing: Sharing
    moments: bool = False
    sites: tuple[str, ...] = ()
    labels: bool = False
    guards: Guards = field(default_factory=Guards)

    def problem_down(self, weights: Mapping[str, Tensor]) -> str:
        """Return what is wrong with tensors that a site is sent to train from; empty if nothing."""
        return self._problem(weights, self.sharing.receives)

    def problem_up(self, weights: Mapping[str, Tensor]) -> str:
        """Return what is wrong with tensors that leave a site; empty if nothing."""
        return self._problem(weights, self.sharing.sends)

    def problem_scored(self, weights: Mapping[str, Tensor]) -> str:
        """Return what is wrong with a model that a site is sent to score; empty if nothing."""
        beside = next((name for name in weights if "/" in name), "")
        if beside:
            return f"'{beside}' is no part of a model that is scored"
        return self._problem(weights, ())

    def problem_in_reply(
        self, request: Request, weights: Mapping[str, Tensor], *, delivered: bool = False
    ) -> str:
        """Return what is wrong with the tensors in a reply; empty if nothing.

        With `delivered` they went to other sites, and none are left in the receipt.
        """
        trains = isinstance(request, Train) or (isinstance(request, Backward) and request.last)
        if delivered or not (trains or isinstance(request, Forward | Tail | Merge)):
            odd = next(iter(weights), "")
            return f"'{odd}' came, and nothing was asked for" if odd else ""
        if isinstance(request, Forward | Tail):
            label = (LABEL,) if self.labels and isinstance(request, Forward) else ()
            return problem_crossing(weights, (CUT, *label))
        if isinstance(request, Merge):
            return self.problem_merged(weights)
        return self.problem_in_update(weights)

    def problem_in_update(self, weights: Mapping[str, Tensor]) -> str:
        """Return what is wrong with a site's update of a round; empty if nothing."""
        missing = next((name for name in self.leaving if name not in weights), "")
        if missing:
            return f"'{missing}' is missing"
        return self._problem_guarded(weights) if self.guards else self.problem_up(weights)

    @cached_property
    def leaving(self) -> Layout:
        """Return the shapes and types in which the model's tensors leave a site."""
        return self.guards.layout(self.model)

    def _problem_guarded(self, weights: Mapping[str, Tensor]) -> str:
        """Return what is wrong with an update that guards changed: all of `leaving` is there."""
        sets = {name: tensor for name, tensor in weights.items() if name not in self.leaving}
        guarded = {name: weights[name] for name in self.leaving}
        odd = next(
            (name for name, t in guarded.items() if (t.shape, t.dtype) != self.leaving[name]), ""
        )
        if odd:
            (shape, kind), found = self.leaving[odd], guarded[odd]
            return (
                f"'{odd}' is {tuple(found.shape)} of {found.dtype}; it must be {tuple(shape)} of "
                f"{kind}, as the study's guards send it"
            )
        alone = next((name for name in sets if "/" not in name), "")
        if alone:
            return f"'{alone}' is no tensor of this study's network that leaves a site"
        return (
            self.problem_up(sets)
            or _not_finite(guarded)
            or self.guards.problem(guarded, self.model)
        )

    def problem_merged(self, weights: Mapping[str, Tensor]) -> str:
        """Return what is wrong with a state that a leader merged; empty if nothing."""
        for name, tensor in weights.items():
            kind, _, within = name.partition("/")
            if kind == "weights":
                problem = self._wrong(name, within, tensor)
            elif kind == "memory":
                problem = self._of_memory(name, within, tensor)
            else:
                problem = f"'{name}' is no part of a merged state"
            if problem:
                return problem
        missing = next((name for name in self.model if f"weights/{name}" not in weights), "")
        return f"'{missing}' is missing" if missing else _not_finite(weights)

    def _of_memory(self, name: str, within: str, tensor: Tensor) -> str:
        """Check what a server's step remembers; it may compute in another precision."""
        last = within.rpartition("/")[2]
        if last in self.private:
            return f"'{name}' is of a tensor that stays at the site"
        if last in self.model and tensor.shape != self.model[last][0]:
            return f"'{name}' is {tuple(tensor.shape)}; it must be {tuple(self.model[last][0])}"
        return ""

    def _problem(self, weights: Mapping[str, Tensor], sets: tuple[str, ...]) -> str:
        problems = (self._of_tensor(name, tensor, sets) for name, tensor in weights.items())
        found = next((problem for problem in problems if problem), "")
        return (
            found or self._incomplete(weights) or self._too_large(weights) or _not_finite(weights)
        )

    def _of_tensor(self, name: str, tensor: Tensor, sets: tuple[str, ...]) -> str:
        if "/" not in name:
            return self._wrong(name, name, tensor)
        if name.startswith(OPTIMIZER):
            return self._wrong_moment(name, tensor)
        belongs, _, within = name.partition("/")
        if belongs not in sets:
            return f"'{name}' belongs to no set that travels this way"
        return self._of_set(name, within, tensor)

    def _of_set(self, name: str, within: str, tensor: Tensor) -> str:
        *path, last = within.split("/")
        if path and path != [site for site in path if site in self.sites][:1]:
            return f"'{name}' bears no name of a site of this study"
        if last in self.private:
            return f"'{name}' is of a tensor that stays at the site"
        if not tensor.is_floating_point():
            return f"'{name}' is no tensor of floating-point numbers"
        return self._wrong(name, last, tensor) if last in self.model else ""

    def _wrong(self, name: str, of: str, tensor: Tensor) -> str:
        if of in self.private:
            return f"'{name}' stays at the site"
        if of not in self.model:
            return f"'{name}' is no tensor of this study's network"
        shape, kind = self.model[of]
        if tensor.shape != shape or tensor.dtype != kind:
            found = f"{tuple(tensor.shape)} of {tensor.dtype}"
            return f"'{name}' is {found}; it must be {tuple(shape)} of {kind}"
        return ""

    def _wrong_moment(self, name: str, tensor: Tensor) -> str:
        if not self.moments:
            return f"'{name}': the optimiser's state stays at the site in this study"
        part, _, rest = name.removeprefix(OPTIMIZER).partition("/")
        parameter, _, _ = rest.rpartition("/")
        whole = f"{part}.{parameter}" if part else parameter
        if whole not in self.model or not tensor.is_floating_point():
            return f"'{name}' is of no parameter that travels"
        if tensor.ndim and tensor.shape != self.model[whole][0]:
            return f"'{name}' is {tuple(tensor.shape)}; it must be {tuple(self.model[whole][0])}"
        return ""

    def _incomplete(self, weights: Mapping[str, Tensor]) -> str:
        """Say which tensor is missing, unless no model came at all."""
        if not any("/" not in name for name in weights):
            return ""
        missing = next((name for name in self.model if name not in weights), "")
        return f"'{missing}' is missing" if missing else ""

    def _too_large(self, weights: Mapping[str, Tensor]) -> str:
        sets: Weights = {
            name: tensor
            for name, tensor in weights.items()
            if "/" in name and not name.startswith(OPTIMIZER)
        }
        found, most = num_bytes(sets), self.bytes_of_sets
        return f"sets of {found} bytes came; at most {most} may" if found > most else ""

    @property
    def bytes_of_model(self) -> int:
        """Return the bytes of the tensors that travel."""
        return bytes_of(self.model)

    @property
    def bytes_of_sets(self) -> int:
        """Return the bytes that sets beside the model may have, one way."""
        copies = len(self.sites) if self.sharing.shows_updates else 1
        sets = max(len(self.sharing.sends), len(self.sharing.receives))
        return sets * copies * self.bytes_of_model + SLACK


def problem_crossing(weights: Mapping[str, Tensor], prefixes: tuple[str, ...]) -> str:
    """Return what is wrong with tensors that cross a cut; empty if nothing."""
    odd = next((name for name in weights if not name.startswith(prefixes)), "")
    return f"'{odd}' does not cross the cut" if odd else _not_finite(weights)


def _not_finite(weights: Mapping[str, Tensor]) -> str:
    odd = first_not_finite(weights)
    return f"'{odd}' is not finite" if odd else ""


def policy_of(
    network: nn.Module,
    travels: Filter,
    uses: Filter,
    sharing: Sharing,
    *,
    moments: bool,
    sites: tuple[str, ...],
    labels: bool = False,
    guards: Guards | None = None,
) -> TensorPolicy:
    """Return the policy of a site, which uses some tensors of the network."""
    state = network.state_dict()
    model = {n: (t.shape, t.dtype) for n, t in state.items() if uses(n) and travels(n)}
    private = frozenset(name for name in state if not travels(name))
    return TensorPolicy(model, private, sharing, moments, sites, labels, guards or Guards())
