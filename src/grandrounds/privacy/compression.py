"""Updates leave a site in fewer bytes, and what that takes from one is added to the next."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import ceil
from typing import Protocol

import torch
from torch import Size, Tensor, dtype

from grandrounds.core.messages import Reply
from grandrounds.core.state import State
from grandrounds.core.weights import Weights, select, with_prefix, without_prefix
from grandrounds.privacy.guard import GUARD, Demand, Departure, Layout
from grandrounds.privacy.settings import Exchange

_OWED = "owed/"  # before the names of what a site owes
_VALUES = ""  # the part of a tensor that leaves under the tensor's own name
_LEVELS = 127  # of 8 bits with a sign, alike on both sides of zero


_FORMS: Mapping[str, str] = {
    "full": "in full",
    "bf16": "in 16 bits a number",
    "int8": "in 8 bits a number, with a scale for each tensor",
    "topk": "in the {0.fraction:g} of each tensor that moved most",
}


class Codec(Protocol):
    """A form in which a tensor leaves: several tensors by the name of the part, "" the first."""

    def layout(self, size: Size, kind: dtype) -> Layout:
        """Return the parts of a tensor of this shape and type."""
        ...

    def encode(self, tensor: Tensor, base: Tensor) -> Weights:
        """Return a tensor's parts; `base` is what the receiver has of it, or zeros."""
        ...

    def decode(self, parts: Weights, base: Tensor) -> Tensor:
        """Return the tensor that a receiver makes of the parts, in the shape and type of `base`."""
        ...

    def problem(self, parts: Weights, size: Size) -> str:
        """Return what is wrong with the numbers of parts; empty if nothing."""
        ...


@dataclass(frozen=True)
class Rounded:
    """Every number in a floating-point type of its own, rounded to the nearest."""

    kind: dtype | None = None  # None for the tensor's own

    def layout(self, size: Size, kind: dtype) -> Layout:
        return {_VALUES: (size, self.kind or kind)}

    def encode(self, tensor: Tensor, base: Tensor) -> Weights:
        return {_VALUES: (tensor - base).to(self.kind or base.dtype)}

    def decode(self, parts: Weights, base: Tensor) -> Tensor:
        moved = parts[_VALUES].to(base.dtype)
        return torch.where(base == 0, moved, base + moved)  # 0.0 + -0.0 would be another zero

    def problem(self, parts: Weights, size: Size) -> str:  # noqa: ARG002
        return ""


@dataclass(frozen=True)
class Scaled:
    """8 bits for each number, and for the tensor the scale of a step: its largest move / 127.

    Numbers are rounded to the nearest step, not at random: what is owed keeps the mean right.
    """

    def layout(self, size: Size, kind: dtype) -> Layout:  # noqa: ARG002
        return {_VALUES: (size, torch.int8), "scale": (Size(), torch.float32)}

    def encode(self, tensor: Tensor, base: Tensor) -> Weights:
        move = tensor - base
        largest = move.abs().max() if move.numel() else torch.zeros(())
        scale = (largest / _LEVELS).to(torch.float32)
        steps = (move / scale).round().clamp(-_LEVELS, _LEVELS) if scale else torch.zeros_like(move)
        return {_VALUES: steps.to(torch.int8), "scale": scale}

    def decode(self, parts: Weights, base: Tensor) -> Tensor:
        return (base + parts[_VALUES] * parts["scale"]).to(base.dtype)

    def problem(self, parts: Weights, size: Size) -> str:  # noqa: ARG002
        most = torch.finfo(torch.float32).max / _LEVELS
        scale = float(parts["scale"])
        return "" if 0 <= scale <= most else f"has a scale of {scale:g}"


@dataclass(frozen=True)
class Largest:
    """The numbers that moved most, as they are, with their places; the others stay as they were.

    The share is of each tensor, rounded up. Stich et al. 2018.
    """

    fraction: float

    def layout(self, size: Size, kind: dtype) -> Layout:
        number = Size((self._number(size.numel()),))
        return {_VALUES: (number, kind), "places": (number, torch.int32)}

    def _number(self, numbers: int) -> int:
        return ceil(self.fraction * numbers)

    def encode(self, tensor: Tensor, base: Tensor) -> Weights:
        flat, moved = tensor.reshape(-1), (tensor - base).abs().reshape(-1)
        places = moved.topk(self._number(flat.numel())).indices.sort().values
        return {_VALUES: flat[places].to(base.dtype), "places": places.to(torch.int32)}

    def decode(self, parts: Weights, base: Tensor) -> Tensor:
        decoded = base.clone().reshape(-1)
        decoded[parts["places"].long()] = parts[_VALUES].to(base.dtype)
        return decoded.view(base.shape)

    def problem(self, parts: Weights, size: Size) -> str:
        places = parts["places"]
        if not places.numel():
            return ""
        inside = int(places[0]) >= 0 and int(places[-1]) < size.numel()
        ordered = bool((places[1:] > places[:-1]).all())
        return "" if inside and ordered else "has places outside it, or one twice"


@dataclass(frozen=True)
class Compression:
    """A guard: the model's tensors leave in another form, and what that takes from them is owed.

    What is owed, e, is added to the site's next update: u + e is encoded, and e' = u + e - sent.
    Sets that a method sends beside the model leave as they are. Seide et al. 2014; Karimireddy et
    al. 2019.
    """

    exchange: Exchange

    @property
    def word(self) -> str:
        return f'exchange.kind = "{self.exchange.kind}"'

    @property
    def codec(self) -> Codec:
        """Return the form in which tensors leave."""
        match self.exchange.kind:
            case "full":
                return Rounded()
            case "bf16":
                return Rounded(torch.bfloat16)
            case "int8":
                return Scaled()
            case "topk":
                return Largest(self.exchange.fraction or 1.0)

    def told(self, sites: int) -> str:  # noqa: ARG002
        of = "how far it moved" if self.exchange.sends_moves else "its model"
        form = _FORMS[self.exchange.kind].format(self.exchange)
        owed = "" if self.exchange.kind == "full" else "; what that takes is added to its next one"
        return f"exchange: in its update a site sends {of} {form}{owed}"

    def needs(self) -> Mapping[Demand, str]:
        needs: dict[Demand, str] = {
            "side by side": "updates are made whole again where they are averaged, and "
            "here nothing is"
        }
        if self.exchange.sends_moves:
            needs["common start"] = "a site sends how far it moved from where all sites started"
        return needs

    def protect(self, departure: Departure) -> Departure:
        """Encode the model's tensors, with what is owed; keep what is still owed.

        Where nothing is lost, nothing is owed, not even zeros.
        """
        owed, codec = without_prefix(_OWED, departure.kept), self.codec
        sent, owes = dict[str, Tensor](), dict[str, Tensor]()
        for name, tensor in departure.update.items():
            if "/" in name:
                sent[name] = tensor
                continue
            whole = tensor + owed[name] if name in owed else tensor
            base = self._base(name, tensor, departure.start)
            parts = codec.encode(whole, base)
            sent |= {_address(part, name): encoded for part, encoded in parts.items()}
            if self.exchange.kind != "full":
                left = whole - codec.decode(parts, base)
                owes |= {name: left} if left.any() else {}
        kept = select(departure.kept, lambda name: not name.startswith(_OWED))
        return replace(departure, update=sent, kept=kept | with_prefix(_OWED, owes))

    def _base(self, name: str, like: Tensor, start: Weights) -> Tensor:
        return start[name] if self.exchange.sends_moves else torch.zeros_like(like)

    def admit(self, replies: Sequence[Reply], state: State) -> Sequence[Reply]:
        """Make the replies' tensors whole again, in the types that they have in the model."""
        return [replace(reply, weights=self._decoded(reply.weights, state)) for reply in replies]

    def _decoded(self, weights: Weights, state: State) -> Weights:
        whole = dict[str, Tensor]()
        for name, tensor in weights.items():
            if name.startswith(GUARD):
                continue
            if "/" in name:
                whole[name] = tensor
                continue
            base = state.weights[name]
            if not self.exchange.sends_moves:
                base = torch.zeros_like(base)
            whole[name] = self.codec.decode(self._parts(name, weights), base)
        return whole

    def _parts(self, name: str, weights: Weights) -> Weights:
        addresses = {
            part: _address(part, name) for part in self.codec.layout(Size(), torch.float32)
        }
        return {part: weights[address] for part, address in addresses.items()}

    def layout(self, tensors: Layout) -> Layout:
        return {
            _address(part, name): form
            for name, (size, kind) in tensors.items()
            for part, form in self.codec.layout(size, kind).items()
        }

    def problem(self, weights: Weights, tensors: Layout) -> str:
        for name, (size, _) in tensors.items():
            problem = self.codec.problem(self._parts(name, weights), size)
            if problem:
                return f"'{name}' {problem}"
        return ""


def _address(part: str, name: str) -> str:
    return f"{GUARD}{part}/{name}" if part else name
