"""What the protocol sends travels as tensors of bytes, one for each site that it is of or for."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

import torch
from torch import Tensor

from grandrounds.core.sentence import phrase
from grandrounds.core.serialization import from_plain
from grandrounds.core.weights import Weights, with_prefix, without_prefix
from grandrounds.privacy.secure_sum.roster import Advertisement, SecureSumRefused

PUBLIC, SHARES, REVEALED = "keys/", "shares/", "revealed/"  # before the names of sites
_SIZES: Mapping[str, tuple[int, int]] = {
    PUBLIC: (1, 2**14),  # bytes at least and at most: a certificate goes along
    SHARES: (82, 82),  # two shares of 33 bytes and the tag of 16
    REVEALED: (33, 33),
}


@dataclass(frozen=True)
class _Words:
    """An advertisement in JSON; bytes are hexadecimal."""

    study: str
    round: int
    site: str
    weight: int
    sealing: str
    masking: str
    certificate: str
    signature: str


def keys_to_tensors(own: Advertisement) -> Weights:
    """Return what a site advertises as one tensor under its name."""
    words = {n: v.hex() if isinstance(v, bytes) else v for n, v in asdict(own).items()}
    return with_prefix(PUBLIC, {own.site: _tensor(json.dumps(words).encode())})


def keys_from_tensors(weights: Weights, roster: Sequence[str]) -> tuple[Advertisement, ...]:
    """Return what sites advertised, in roster order. Raises `SecureSumRefused`."""
    by_site = tensors_to_bytes(PUBLIC, weights)
    members = [_advertisement(by_site[name]) for name in roster if name in by_site]
    named = [name for name in roster if name in by_site]
    if len(members) < len(by_site) or [member.site for member in members] != named:
        raise _unreadable()
    return tuple(members)


def _advertisement(data: bytes) -> Advertisement:
    try:
        words = from_plain(_Words, json.loads(data))
        raw = (words.sealing, words.masking, words.certificate, words.signature)
        keys = [bytes.fromhex(text) for text in raw]
        return Advertisement(words.study, words.round, words.site, words.weight, *keys)
    except (ValueError, TypeError, KeyError, RecursionError):
        raise _unreadable() from None


def _unreadable() -> SecureSumRefused:
    sentence = phrase("what came as the keys of a secure sum cannot be read")
    return SecureSumRefused(str(sentence), safe=sentence)


def bytes_to_tensors(prefix: str, by_site: Mapping[str, bytes]) -> Weights:
    """Return a tensor of bytes for each site."""
    return with_prefix(prefix, {name: _tensor(data) for name, data in by_site.items()})


def tensors_to_bytes(prefix: str, weights: Weights) -> dict[str, bytes]:
    """Return the bytes for each site among tensors with this prefix."""
    found = without_prefix(prefix, weights)
    return {name: tensor.numpy().tobytes() for name, tensor in found.items()}


def _tensor(data: bytes) -> Tensor:
    return torch.frombuffer(bytearray(data), dtype=torch.uint8)


def problem_in_bytes(weights: Mapping[str, Tensor], prefix: str, sites: Sequence[str]) -> str:
    """Return what is wrong with tensors of the protocol; empty if nothing.

    Each bears the prefix and the name of one of these sites, and holds as many bytes as its kind.
    """
    least, most = _SIZES[prefix]
    for name, tensor in weights.items():
        if not name.startswith(prefix) or name.removeprefix(prefix) not in sites:
            return f"'{name}' is no part of this step of the secure sum"
        if tensor.dtype != torch.uint8 or tensor.ndim != 1 or not least <= len(tensor) <= most:
            return f"'{name}' is not of the size that it has in a secure sum"
    return ""
