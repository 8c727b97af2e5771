"""Noise that protects comes from a secret of the site, and is the same where all else is the same.

Whoever can compute the noise again can take it off. So a real site draws it from a secret that
never leaves it, and never twice for two different results: their difference would have no noise.
"""

import hmac
import os
from dataclasses import dataclass
from hashlib import sha256, shake_256
from pathlib import Path

import torch

from grandrounds.core.errors import BadSite
from grandrounds.core.files import make_private_folder, write_bytes
from grandrounds.core.sentence import phrase

_BYTES = 32
_SECRET = "secret"


@dataclass(frozen=True)
class NoiseSource:
    """Derives the random numbers of a site's releases from its secret."""

    secret: bytes

    def __repr__(self) -> str:
        """Return words without the secret, which so gets into no log."""
        return "NoiseSource()"

    def release(self, *facts: str | int | float) -> str:
        """Return the name of one release, 64 hex digits, from all that its numbers depend on.

        A release that is repeated from the same facts has the same name, and so the same numbers;
        any other fact gives another name, and numbers that nobody can relate to it.
        """
        text = "\x1f".join(repr(fact) for fact in facts)
        return hmac.new(self.secret, text.encode(), sha256).hexdigest()

    def key(self, release: str, *purpose: str | int) -> bytes:
        """Return the key of one purpose of a release, from which `gaussian` and `uniform` draw."""
        return bytes.fromhex(self.release(release, *purpose))

    def generator(self, release: str, *purpose: str | int) -> torch.Generator:
        """Return the generator of what need not be secret in a release, on the CPU.

        Its state follows from 32 bits, which anyone can try out: it draws no noise.
        """
        return torch.Generator().manual_seed(int(self.release(release, *purpose)[:16], 16) >> 1)


def uniform(key: bytes, count: int) -> list[float]:
    """Return numbers from 0 to below 1 that follow from a key, from SHAKE-256."""
    stream = shake_256(key).digest(8 * count)
    words = (stream[first : first + 8] for first in range(0, len(stream), 8))
    return [(int.from_bytes(word, "big") >> 11) / 2**53 for word in words]


def simulated_noise(seed: int, site: str) -> NoiseSource:
    """Return the noise of a simulated site: from the study's seed, which protects nobody."""
    return NoiseSource(sha256(f"simulated noise\x1f{seed}\x1f{site}".encode()).digest())


def noise_in(folder: Path) -> NoiseSource:
    """Return the noise of a real site, whose secret lies in this folder; made where there is none.

    Only its owner can read it. Raises `BadSite` where it is damaged, `DiskFailed` where it cannot
    be written.
    """
    path = folder / _SECRET
    make_private_folder(folder)
    if not path.exists():
        write_bytes(path, os.urandom(_BYTES), private=True)
    secret = path.read_bytes()
    if len(secret) != _BYTES:
        raise BadSite(
            f"{path}: the secret of this site's noise has {len(secret)} bytes, not {_BYTES}; "
            "restore the file from a copy",
            safe=phrase("the secret of its noise is damaged"),
        )
    return NoiseSource(secret)
