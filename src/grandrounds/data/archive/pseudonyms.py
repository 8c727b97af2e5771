"""A patient's pseudonym is a keyed hash; the key is made at the site and never leaves it."""

import hashlib
import hmac
import os
import secrets
from dataclasses import dataclass, field
from pathlib import Path

from grandrounds.core.errors import BadSite
from grandrounds.core.files import write_bytes

_LENGTH = 32  # bytes of a key
_DIGITS = 16  # of a pseudonym: two of a million patients agree with a chance of 3 in 10^8


@dataclass(frozen=True)
class Pseudonyms:
    """HMAC-SHA256 (RFC 2104) with the site's key: the same patient has one name in all runs."""

    key: bytes = field(repr=False)

    def patient(self, identifier: str) -> str:
        """Return `sub-` and 16 hexadecimal digits; spaces about an identifier do not count."""
        return f"sub-{self._digest('patient', identifier.strip())}"

    def case(self, identifier: str) -> str:
        """Return by what the table calls a series."""
        return self._digest("case", identifier)

    @property
    def check(self) -> str:
        """Return what tells a table whether the key is the one that it was filled with."""
        return self._digest("check", "")

    def _digest(self, purpose: str, text: str) -> str:
        message = f"{purpose}\0{text}".encode("utf-8", "surrogatepass")
        return hmac.new(self.key, message, hashlib.sha256).hexdigest()[:_DIGITS]


def open_pseudonyms(path: Path, *, make: bool) -> Pseudonyms:
    """Read the site's key; where there is none yet, `make` it (mode 600). Raises `BadSite`."""
    if make and not path.exists():
        write_bytes(path, secrets.token_bytes(_LENGTH), private=True)
    try:
        with path.open("rb") as file:
            mode, key = os.fstat(file.fileno()).st_mode & 0o777, file.read(_LENGTH + 1)
    except FileNotFoundError:
        raise BadSite(
            f"{path}: the key of the pseudonyms is gone; bring it back from a backup, for a new "
            "one would give all patients new names"
        ) from None
    except OSError as error:
        raise BadSite(f"{path}: {error.strerror}; the key must be readable") from None
    if len(key) != _LENGTH:
        raise BadSite(f"{path}: is no key of {_LENGTH} bytes; bring it back from a backup")
    if mode & 0o077:
        raise BadSite(f"{path}: others can read the key (mode {mode:o}); chmod 600 it")
    return Pseudonyms(key)
