"""Weights are named tensors, with the few operations that a federation performs on them."""

import errno
import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Protocol, TypeAlias, cast

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file  # pyright: ignore[reportUnknownVariableType]
from torch import Tensor

from grandrounds.core.errors import BadFolder, BadUpdate
from grandrounds.core.files import appearing
from grandrounds.core.sentence import phrase
from grandrounds.core.signals import stopping_later

Weights: TypeAlias = dict[str, Tensor]
"""Tensors by their names in a network, in the order in which it registers them."""
Filter: TypeAlias = Callable[[str], bool]
_BLOCK = 2**16  # numbers that are averaged at a time
OPTIMIZER = "optimizer/"  # before the names of an optimiser's tensors, where they lie with weights


def name_starts(*prefixes: str) -> Filter:
    """Return a filter of names by their start, for example `name_starts("generator.decoder.")`."""
    return lambda name: name.startswith(prefixes)


def name_in(names: frozenset[str]) -> Filter:
    """Return a filter that passes exactly these names."""
    return lambda name: name in names


def select(weights: Mapping[str, Tensor], keep: Filter) -> Weights:
    """Return the tensors whose names pass the filter, in their order."""
    return {name: tensor for name, tensor in weights.items() if keep(name)}


def with_prefix(prefix: str, weights: Mapping[str, Tensor]) -> Weights:
    """Return the tensors with a prefix before every name."""
    return {f"{prefix}{name}": tensor for name, tensor in weights.items()}


def without_prefix(prefix: str, weights: Mapping[str, Tensor]) -> Weights:
    """Return the tensors whose names start with a prefix, by the names without it."""
    return {n.removeprefix(prefix): t for n, t in weights.items() if n.startswith(prefix)}


def to_cpu(weights: Mapping[str, Tensor]) -> Weights:
    """Copy every tensor to contiguous memory of the CPU, detached from any graph."""
    return {name: t.detach().to("cpu", copy=True).contiguous() for name, t in weights.items()}


def unaliased(weights: Mapping[str, Tensor]) -> Weights:
    """Copy what shares memory with an earlier tensor, or is not contiguous in it.

    A file, as a message, holds each tensor once and in order.
    """
    seen, alone = set[int](), dict[str, Tensor]()
    for name, tensor in weights.items():
        place = tensor.untyped_storage().data_ptr()
        alone[name] = (tensor.clone() if place in seen and tensor.numel() else tensor).contiguous()
        seen.add(place)
    return alone


def num_bytes(weights: Mapping[str, Tensor]) -> int:
    """Count the bytes of all tensors."""
    return sum(tensor.nbytes for tensor in weights.values())


def mean(updates: Sequence[Weights], shares: Sequence[float]) -> Weights:
    """Average in the order given, in float64, and return each tensor in its own dtype.

    `updates` map equal names to floating tensors of equal shape; `shares` are example counts or any
    positive weights. Raises `BadUpdate` where names or shapes differ. McMahan et al. 2017,
    algorithm 1.
    """
    _check_alike(updates)
    total = sum(shares)
    return {
        name: _mean([update[name] for update in updates], [share / total for share in shares])
        for name in updates[0]
    }


def _mean(tensors: Sequence[Tensor], shares: Sequence[float]) -> Tensor:
    """Average block by block, so that a block's float64 fits in the cache."""
    flat = [tensor.reshape(-1) for tensor in tensors]
    average = torch.empty_like(flat[0])
    for start in range(0, average.numel(), _BLOCK):
        block = slice(start, start + _BLOCK)
        total = torch.zeros(average[block].shape, dtype=torch.float64)
        for tensor, share in zip(flat, shares, strict=True):
            total += tensor[block].double() * share
        average[block] = total
    return average.view(tensors[0].shape)


def median(updates: Sequence[Weights]) -> Weights:
    """Return the median of each coordinate, in float64; of an even number, the middle two's mean.

    Every site counts alike. Yin et al. 2018, definition 1.
    """
    return trimmed_mean(updates, (len(updates) - 1) // 2)


def trimmed_mean(updates: Sequence[Weights], dropped: int) -> Weights:
    """Average each coordinate without its `dropped` lowest and highest values, in float64.

    Every site counts alike. Yin et al. 2018, definition 2.
    """
    _check_alike(updates)
    return {n: _trimmed([update[n] for update in updates], dropped) for n in updates[0]}


def _trimmed(tensors: Sequence[Tensor], dropped: int) -> Tensor:
    ordered = torch.stack([tensor.double() for tensor in tensors]).sort(0).values
    return ordered[dropped : len(tensors) - dropped].mean(0).to(tensors[0].dtype)


def _check_alike(updates: Sequence[Weights]) -> None:
    shapes = {name: tensor.shape for name, tensor in updates[0].items()}
    for update in updates[1:]:
        other = {name: tensor.shape for name, tensor in update.items()}
        if other != shapes:
            odd = sorted(n for n in shapes.keys() | other.keys() if shapes.get(n) != other.get(n))
            raise BadUpdate(
                f"updates differ in {len(odd)} tensors, first '{odd[0]}': "
                f"{shapes.get(odd[0])} and {other.get(odd[0])}; every site must send the same names"
            )


def first_not_finite(weights: Mapping[str, Tensor]) -> str | None:
    """Return the name of the first tensor that holds a NaN or an infinity, if any."""
    return next((name for name, t in weights.items() if not _is_finite(t)), None)


def _is_finite(tensor: Tensor) -> bool:
    """Look at minimum and maximum alone, which a NaN makes NaN: fast, and without a mask."""
    if not tensor.numel():
        return True
    low, high = torch.aminmax(tensor)
    return bool(low.isfinite()) and bool(high.isfinite())


def digest(weights: Mapping[str, Tensor]) -> str:
    """Return a SHA-256, in hex, of names, dtypes, shapes and bits.

    Equal digests mean identical weights.
    """
    sha = hashlib.sha256()
    for name in sorted(weights):
        tensor = weights[name].detach().cpu().contiguous()
        sha.update(f"{name}|{tensor.dtype}|{tuple(tensor.shape)}|".encode())
        sha.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return sha.hexdigest()


def write(
    path: Path,
    weights: Weights,
    notes: Mapping[str, str] | None = None,
    *,
    private: bool = False,
) -> None:
    """Write a safetensors file so that a reader sees all of it or nothing, even after a power cut.

    What is `private` its owner alone can read, the folder too. Raises `DiskFailed` where the disk
    refuses; what was at `path` before is then still there.
    """
    with appearing(path, private=private) as temporary:
        _save(temporary, weights, dict(notes) if notes else None)


def _save(path: Path, weights: Weights, notes: dict[str, str] | None) -> None:
    try:
        save_file(weights, path, notes)
    except SafetensorError as error:  # the system's message: "I/O error: ... (os error 27)"
        words, _, number = str(error).partition("I/O error: ")[2].partition(" (os error ")
        number = number.rstrip(")")
        code = int(number) if number.isdecimal() else errno.EIO
        raise OSError(code, words or str(error)) from error


class _OpenFile(Protocol):
    def keys(self) -> Iterable[str]: ...
    def get_tensor(self, name: str) -> Tensor: ...
    def metadata(self) -> Mapping[str, str] | None: ...


def read(path: Path) -> tuple[Weights, dict[str, str]]:
    """Read a safetensors file: its tensors and its notes. Raises `BadFolder` if it is damaged.

    Ctrl-C waits meanwhile: within safetensors it would come out as a `ValueError`.
    """
    try:
        handle = cast(AbstractContextManager[_OpenFile], safe_open(path, framework="pt"))
        with stopping_later(), handle as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            return tensors, dict(file.metadata() or {})
    except (SafetensorError, OSError) as error:
        raise BadFolder(
            f"{path}: not a readable safetensors file ({error})",
            safe=phrase("a file of saved tensors is missing or damaged"),
        ) from None
