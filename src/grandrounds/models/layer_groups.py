"""Any network's tensors have names and groups: by type, by order, by how their names start."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, cast

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm  # pyright: ignore[reportPrivateUsage]

from grandrounds.core.errors import BadStudy
from grandrounds.core.weights import Filter, name_in

OWN = "network."  # of all names, as the network is the attribute `network`
_UNIONS = ("all", "norm", "upper")  # what they hold is in another group, too
_PARAMETRISED = ".parametrizations."  # as PyTorch names what replaces a parameter


class NamedNetwork(nn.Module):
    """A network whose tensors are named `network.*`, each once.

    A tensor that the network registers under several names has its first name alone, so that what
    stays at a site cannot leave it under another one.
    """

    network: nn.Module

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        self.register_state_dict_post_hook(_first_names_alone)  # pyright: ignore[reportUnknownMemberType]

    def forward(self, *inputs: Any) -> Any:
        """Run the network."""
        return self.network(*inputs)

    def compile(self, *options: Any, **named: Any) -> None:
        """Compile the network, which is called by itself."""
        self.network.compile(*options, **named)  # pyright: ignore[reportUnknownMemberType]


def _first_names_alone(
    module: nn.Module, state: dict[str, Any], prefix: str, _notes: Mapping[str, Any]
) -> None:
    """Leave a tensor that has several names under its first one alone."""
    first = {f"{prefix}{name}" for name in first_names(module)}
    for name in [name for name in state if name.startswith(prefix) and name not in first]:
        del state[name]


def first_names(module: nn.Module) -> list[str]:
    """List a module's parameters and buffers, each once, in the order of registration."""
    return [name for name, _ in (*module.named_parameters(), *module.named_buffers())]


def layer_groups(
    model: NamedNetwork, named: Mapping[str, Sequence[str]], where: str
) -> dict[str, Filter]:
    """Return the parameter groups of a network.

    "all" is the network, "norm" its batch norms, "head" its last layer and "upper" the later half
    of its layers, in the order in which it registers them. `named` maps a further group, or one of
    these anew, to how the names of its layers start. What no such group holds is in "body", and in
    "output" where it belongs to the last layer. Raises `BadStudy`, which says `where` the groups
    are named.
    """
    layers = _layers(model)
    parameters = {name for name, _ in model.named_parameters()}
    trained = [name for name, tensors in layers.items() if not parameters.isdisjoint(tensors)]
    if not trained:
        raise BadStudy(f"{where}: the network has no parameter, so there is nothing to train")
    order = list(layers)
    upper = order[order.index(trained[len(trained) // 2]) :]
    norms = [name for name in layers if isinstance(model.get_submodule(name), _BatchNorm)]
    given = {
        group: _starting(layers, starts, f"{where}.{group}") for group, starts in named.items()
    }
    held = frozenset[str]().union(*(given[name] for name in given if name not in _UNIONS))
    head = frozenset(layers[trained[-1]])
    everything = _tensors(layers, order)
    rest = {"body": everything - head - held, "output": head - held}
    groups = {
        **{name: tensors for name, tensors in rest.items() if tensors and name not in given},
        "norm": _tensors(layers, norms),
        "head": head,
        "upper": _tensors(layers, upper),
        "all": everything,
        **given,
    }
    return {name: name_in(tensors) for name, tensors in groups.items()}


def _layers(model: NamedNetwork) -> dict[str, tuple[str, ...]]:
    """Map each module that has tensors of its own to their names, in the order of registration."""
    modules = cast(Iterable[tuple[str, nn.Module]], model.named_modules())
    found: dict[str, list[str]] = {name: [] for name, _ in modules}
    for tensor in model.state_dict():
        found[_layer_of(tensor)].append(tensor)
    return {name: tuple(tensors) for name, tensors in found.items() if tensors}


def _layer_of(tensor: str) -> str:
    layer, parametrised, _ = tensor.partition(_PARAMETRISED)
    return layer if parametrised else tensor.rpartition(".")[0]


def _tensors(layers: Mapping[str, tuple[str, ...]], chosen: Iterable[str]) -> frozenset[str]:
    return frozenset(tensor for name in chosen for tensor in layers[name])


def _starting(
    layers: Mapping[str, tuple[str, ...]], starts: Sequence[str], where: str
) -> frozenset[str]:
    """Return the tensors of the layers whose names start so. Raises `BadStudy` where none does."""
    if not starts or isinstance(starts, str):
        raise BadStudy(f'{where} must list how the names of its layers start, such as ["encoder"]')
    for start in starts:
        if not any(_begins(name, start) for name in layers):
            tops = dict.fromkeys(name.split(".")[1] for name in layers if "." in name)
            raise BadStudy(
                f'{where}: no layer starts with "{start}"; the network has {", ".join(tops)}'
            )
    return _tensors(layers, [n for n in layers if any(_begins(n, start) for start in starts)])


def _begins(layer: str, start: str) -> bool:
    return layer.removeprefix(OWN).startswith(start)
