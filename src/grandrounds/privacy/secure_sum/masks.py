"""Masks are keystreams of ChaCha20 that are added modulo 2^32, and cancel in the sum.

For two sites u before v in the roster, u adds their mask and v takes it off; every site adds a mask
of its own as well. Bonawitz et al. 2017, section 4.
"""

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import ChaCha20

from grandrounds.privacy.secure_sum.fixed_point import MaskedVector
from grandrounds.privacy.secure_sum.keys import derive, mask_key
from grandrounds.privacy.secure_sum.roster import MaskRoster

_BLOCK = 2**16  # elements of the keystream that are made at a time, which fit in the cache
_ZEROS = bytes(4 * _BLOCK)
_START = bytes(16)  # counter and nonce: a key makes one keystream only


def add_mask(vector: MaskedVector, key: bytes, sign: int) -> None:
    """Add the keystream of a key to a vector, or take it off, modulo 2^32 and in place."""
    stream = Cipher(ChaCha20(key, _START), mode=None).encryptor()
    change = np.add if sign > 0 else np.subtract
    buffer = np.empty(_BLOCK, "<u4")
    for start in range(0, len(vector), _BLOCK):
        block = vector[start : start + _BLOCK]
        stream.update_into(_ZEROS[: block.nbytes], buffer.view(np.uint8).data)
        change(block, buffer[: len(block)], out=block)


def sign_for(roster: MaskRoster, site: str, peer: str) -> int:
    """Return the sign with which a site adds the mask that it shares with a peer."""
    return 1 if roster.names.index(site) < roster.names.index(peer) else -1


def add_pair_masks(vector: MaskedVector, own: bytes, roster: MaskRoster, site: str) -> None:
    """Add all the masks that a site shares with the others; `own` is its private mask key."""
    for peer in roster.names:
        if peer != site:
            add_mask(vector, mask_key(own, roster, site, peer), sign_for(roster, site, peer))


def add_self_mask(
    vector: MaskedVector, secret: bytes, roster: MaskRoster, site: str, *, sign: int
) -> None:
    """Add the mask that a site shares with nobody, or take it off once its secret is restored."""
    add_mask(vector, derive(secret, roster, "self", site), sign)
