"""A study takes a network and a loss from outside, tried without data before anything trains."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache, partial
from inspect import signature
from typing import ClassVar, Protocol, TypeAlias, TypeVar

import torch
from torch import Tensor, nn

from grandrounds.core.errors import BadStudy, require
from grandrounds.core.extensions import class_named
from grandrounds.core.names import check_name
from grandrounds.core.weights import Filter
from grandrounds.models.imported import (
    ADAPTERS,
    FIXED,
    Imported,
    adaptable,
    adapted_groups,
    build_imported,
    is_adapter,
)
from grandrounds.models.layer_groups import OWN, layer_groups
from grandrounds.models.layers import isolated_seed
from grandrounds.models.norms import batch_norm_names
from grandrounds.models.pretrained import Pretrained, sha256_of
from grandrounds.tasks.task import Batch

_Plain: TypeAlias = bool | int | float | str
NetworkOption: TypeAlias = _Plain | tuple[_Plain | tuple[_Plain | tuple[_Plain, ...], ...], ...]
NetworkOptions: TypeAlias = Mapping[str, NetworkOption]
_META = torch.device("meta")
_PASSES = {"training": True, "evaluation": False}
_Made = TypeVar("_Made", bound=nn.Module)
_AnyOutside = TypeVar("_AnyOutside", bound="Outside")


@dataclass(frozen=True)
class Adapters:
    """Low-rank adapters for the linear layers and convolutions of some groups of layers.

    All other weights of these groups are fixed and never travel. Hu et al. 2022 (LoRA): the update
    of a weight is `scale` times a matrix of `rank`.
    """

    rank: int = 4
    scale: float = 1.0
    groups: tuple[str, ...] = ("all",)


@dataclass(frozen=True)
class Known:
    """What a task knows of its network: axes of an image, channels, and the image's size."""

    dims: int
    inputs: int
    outputs: int
    size: tuple[int, ...]

    def arguments(self, names: Sequence[str]) -> dict[str, object]:
        """Return the arguments that a constructor has parameters for, by MONAI's names.

        Weights come from `task.weights` alone, never from where a constructor would fetch them.
        """
        square = {"image_size": self.size[0]} if len(set(self.size)) == 1 else {}
        known: dict[str, object] = {
            "spatial_dims": self.dims,
            **dict.fromkeys(("in_channels", "n_input_channels"), self.inputs),
            **dict.fromkeys(("out_channels", "num_classes"), self.outputs),
            "img_size": self.size,
            **square,
            "pretrained": False,
        }
        return {name: value for name, value in known.items() if name in names}


@dataclass(frozen=True, kw_only=True)
class Outside:
    """The options of a network and a loss from outside, each a class at an address.

    `groups` names groups of the network's layers by how their names start. `weights` is a file of
    first weights, `weights_sha256` its SHA-256. With `adapters` some groups are trained by low-rank
    adapters alone. `replaced` has the options of the task's own network and loss, which mean
    nothing for others.
    """

    replaced: ClassVar[Mapping[str, tuple[str, ...]]] = {}

    network: str | None = None
    network_options: NetworkOptions | None = None
    loss: str | None = None
    loss_options: NetworkOptions | None = None
    groups: Mapping[str, tuple[str, ...]] | None = None
    weights: str | None = None
    weights_sha256: str | None = None
    adapters: Adapters | None = None

    def check_outside(self, size: Mapping[str, object] | None = None) -> None:
        """Refuse options from outside that make no sense. Raises `BadStudy`.

        `size` has the numbers that the task's size has chosen, so that nobody has said them.
        """
        self._check_alone()
        for option, replaced in self.replaced.items():
            given = getattr(self, option)
            for name in replaced if given else ():
                require(
                    getattr(self, name) == (size or {}).get(name, getattr(type(self), name)),
                    f'task.{name} would do nothing: task.{option} = "{given}" takes the place of '
                    f"the task's own {option}",
                )
        if self.network_options and self.network_options.get("pretrained", False) is not False:
            raise BadStudy(
                "task.network_options.pretrained would load weights that the study does not name; "
                "put them into a file, and say task.weights and task.weights_sha256"
            )
        self._check_groups()
        self._check_weights()

    def _check_alone(self) -> None:
        needed = {
            **dict.fromkeys(("network_options", "groups", "weights", "adapters"), "network"),
            "loss_options": "loss",
            "weights_sha256": "weights",
        }
        for option, needs in needed.items():
            require(
                getattr(self, option) is None or getattr(self, needs) is not None,
                f"task.{option} would do nothing: the study has no task.{needs}",
            )

    def _check_groups(self) -> None:
        for name, starts in (self.groups or {}).items():
            check_name(name, "task.groups:")
            require(
                name not in (ADAPTERS, FIXED),
                f"task.groups.{name}: this name is kept for task.adapters; choose another",
            )
            require(
                bool(starts) and all(starts),
                f"task.groups.{name} is {list(starts)}; it names layers by how they start, for "
                'example ["down_layers"]',
            )
        adapters = self.adapters
        if adapters is None:
            return
        require(adapters.rank >= 1, f"task.adapters.rank is {adapters.rank}; it must be 1 or more")
        require(
            adapters.scale > 0, f"task.adapters.scale is {adapters.scale:g}; it must be above 0"
        )
        for name in adapters.groups:
            known = ", ".join([*(self.groups or {}), "all"])
            require(
                name == "all" or name in (self.groups or {}),
                f"task.adapters.groups: no group '{name}'; [task.groups] has {known}",
            )
        require(bool(adapters.groups), 'task.adapters.groups is empty; for example ["all"]')

    def _check_weights(self) -> None:
        if self.weights and not self.weights_sha256:
            raise BadStudy(
                f'task.weights = "{self.weights}" needs task.weights_sha256, so that all sites '
                f'start from the same file; that of the file here is "{sha256_of(self.weights)}"'
            )

    @property
    def frozen(self) -> tuple[str, ...]:
        """Return the starts of the names of layers that adapters freeze."""
        if not self.adapters:
            return ()
        groups = self.groups or {}
        starts = [start for name in self.adapters.groups for start in groups.get(name, ("",))]
        return tuple(dict.fromkeys(starts))

    def changes(self, name: str) -> bool:
        """Tell whether a tensor of the network under this name is trained or counted at all."""
        starts = tuple(f"{OWN}{start}" for start in self.frozen)
        return not starts or is_adapter(name) or not name.startswith(starts)


def build_outside(
    options: Outside, known: Known, *, seed: int, with_weights: bool = True
) -> Imported:
    """Build a study's network from outside; equal seeds give equal bits. Raises `BadStudy`."""
    adapters, weights = options.adapters, options.weights if with_weights else None
    return build_imported(
        partial(_network, options, known),
        options.frozen,
        seed=seed,
        rank=adapters.rank if adapters else 0,
        scale=adapters.scale if adapters else 1.0,
        load=Pretrained(weights, options.weights_sha256 or "").load if weights else None,
    )


def _network(options: Outside, known: Known) -> nn.Module:
    said, word = "task.network", options.network or ""
    kind, own = class_named(said, word, nn.Module), options.network_options or {}
    given = known.arguments([n for n in signature(kind).parameters if n not in own])
    network = _made(said, word, kind, {**given, **own})
    for name, parameter in network.named_parameters():
        require(
            not nn.parameter.is_lazy(parameter),
            f'{said} = "{word}" has a layer without a shape yet ({name}); say its sizes',
        )
    return network


def build_loss(options: Outside) -> nn.Module | None:
    """Build a study's loss from outside; None where it has none. Raises `BadStudy`."""
    if not options.loss:
        return None
    kind = class_named("task.loss", options.loss, nn.Module)
    with isolated_seed(0):
        loss = _made("task.loss", options.loss, kind, options.loss_options or {})
    require(
        not list(loss.parameters()),
        f'task.loss = "{options.loss}" has weights of its own, which nobody would train',
    )
    return loss


def _made(said: str, word: str, kind: type[_Made], options: Mapping[str, object]) -> _Made:
    try:
        return kind(**options)
    except Exception as error:
        raise _refusal(f'{said} = "{word}": refuses its options', said, word, error) from error


def _refusal(sentence: str, said: str, word: str, error: Exception) -> BadStudy:
    """Return what to say of an error in code from outside."""
    reason = str(error).partition("\n")[0].strip().rstrip(".")
    if isinstance(error, ImportError):
        return BadStudy(f'{said} = "{word}" needs a package that is not installed here: {reason}')
    kind = "" if isinstance(error, TypeError) and reason else f"{type(error).__name__}: "
    return BadStudy(f"{sentence}: {kind}{reason}")


def loss_from_outside(options: Outside, loss: nn.Module, output: Tensor, target: Tensor) -> Tensor:
    """Return the loss of an output, one number. Raises `BadStudy` where it is none."""
    value: object = loss.to(output.device)(output, target)
    if isinstance(value, Tensor) and value.numel() == 1:
        return value.reshape(())
    made = tuple(value.shape) if isinstance(value, Tensor) else f"a {type(value).__name__}"
    raise BadStudy(
        f'task.loss = "{options.loss}" gives {made}, and training needs one number; choose options '
        "with which it gives one"
    )


class OutsideTask(Protocol):
    """A task that takes a network and a loss from outside."""

    @property
    def known(self) -> Known:
        """Return what the task knows of its network."""
        ...

    @property
    def outside(self) -> Outside:
        """Return the task's options."""
        ...

    def blank(self, size: tuple[int, int]) -> Batch:
        """Return a batch of one empty case; "target" has the shape of the network's output."""
        ...

    def distance(self, output: Tensor, batch: Batch) -> Tensor:
        """Return the part of the loss that `task.loss` takes the place of."""
        ...


@dataclass(frozen=True)
class NetworkTrial:
    """A network and a loss from outside that are to be tried; two trials of one key are equal."""

    key: str
    classes: tuple[type, ...]
    task: OutsideTask = field(compare=False, repr=False)
    cases: int = field(compare=False)


def keeps_statistics(task: OutsideTask, *, cases: int) -> bool:
    """Try a task's network and loss; tell whether the network counts statistics (batch norm).

    `cases` are those of a batch. Raises `BadStudy` with what is wrong.
    """
    options, cases = task.outside, min(cases, 2)
    words = {"task.network": options.network, "task.loss": options.loss}
    classes = tuple(class_named(said, w, nn.Module) for said, w in words.items() if w)
    of_study = [getattr(options, name) for name in Outside.__dataclass_fields__]
    return _tried(NetworkTrial(repr((of_study, task.known, cases)), classes, task, cases))


@lru_cache(maxsize=64)
def _tried(trial: NetworkTrial) -> bool:
    options, task = trial.task.outside, trial.task
    rows, columns = task.known.size[-2:]
    batch = {n: t.expand(trial.cases, *t.shape[1:]) for n, t in task.blank((rows, columns)).items()}
    if options.loss:
        _try_loss(task, batch)
    if not options.network:
        return False
    with _META:
        model = build_outside(options, task.known, seed=0, with_weights=False)
    _check_layers(options, model)
    for mode, training in _PASSES.items():
        _try_network(options, model.train(training), batch, mode)
    names = batch_norm_names(model)
    return any(name in names and t.is_floating_point() for name, t in model.named_buffers())


def _try_network(options: Outside, model: Imported, batch: Batch, mode: str) -> None:
    said, word = "task.network", options.network or ""
    source, wanted = batch["source"].to(_META), tuple(batch["target"].shape)
    try:
        with torch.no_grad():
            made: object = model.network(source)
    except Exception as error:
        failed = f'{said} = "{word}" fails on {tuple(source.shape)} in {mode}'
        raise _refusal(failed, said, word, error) from error
    if not isinstance(made, Tensor):
        name, kind = word.rpartition(":")[2], type(made).__name__
        raise BadStudy(
            f"{said}: {name} gives a {kind}, and a task needs one tensor; choose options with "
            "which it gives one"
        )
    require(
        tuple(made.shape) == wanted,
        f'{said} = "{word}" makes {tuple(made.shape)} of {tuple(source.shape)} in {mode}; the task '
        f"needs {wanted}",
    )


def _check_layers(options: Outside, model: Imported) -> None:
    """Refuse groups of layers that the network does not have. Raises `BadStudy`."""
    trained = bool(list(model.parameters()))
    require(trained, f'task.network = "{options.network}" has no weights, so nothing to train')
    odd = next((name for name in model.state_dict() if "/" in name), "")
    require(
        not odd,
        f"task.network = \"{options.network}\": '{odd}' has a '/', which no name of a tensor may "
        "have",
    )
    groups_from_outside(options, model)
    adapted = adaptable(model.network, options.frozen)
    require(
        not options.adapters or bool(adapted),
        "task.adapters.groups: these groups have no linear layer and no convolution, which alone "
        "can have an adapter",
    )


def _try_loss(task: OutsideTask, batch: Batch) -> None:
    """Try the loss on an output of zeros, which costs nothing beside a network."""
    said, word = "task.loss", task.outside.loss or ""
    output = torch.zeros(batch["target"].shape, requires_grad=True)
    try:
        loss = task.distance(output, batch)
    except BadStudy:
        raise
    except Exception as error:
        failed = f'{said} = "{word}" fails on output and target of {tuple(output.shape)}'
        raise _refusal(failed, said, word, error) from error
    require(
        loss.requires_grad,
        f'{said} = "{word}" gives a number without a gradient; no network can be trained on it',
    )


def without_loss(options: _AnyOutside) -> _AnyOutside:
    """Return the options with the task's own loss, to count without data what a network costs."""
    return replace(options, loss=None, loss_options=None)


def without_weights(options: _AnyOutside) -> _AnyOutside:
    """Return the options without the file of first weights, for what depends on shapes alone."""
    return replace(options, weights=None, weights_sha256=None)


def groups_from_outside(
    options: Outside, model: Imported, prefix: str = ""
) -> Mapping[str, Filter]:
    """Return the parameter groups of a network from outside, which stands under a prefix.

    Raises `BadStudy` where the network does not have the layers of a group.
    """
    groups = layer_groups(model, options.groups or {}, "task.groups")
    return adapted_groups(model, groups, prefix=prefix)
