"""A secret is split among sites so that a threshold of them restores it, and fewer learn nothing.

Shamir 1979, "How to Share a Secret": the secret is the value at 0 of a random polynomial over a
prime field, and a share its value at the holder's place in the roster.
"""

from collections.abc import Mapping
from secrets import randbelow

from grandrounds.core.errors import BadUpdate

PRIME = 2**256 + 297  # the smallest prime above every secret of 32 bytes
SECRET_BYTES, SHARE_BYTES = 32, 33


def threshold_of(sites: int) -> int:
    """Return how many of the sites of a round are needed to restore a secret.

    More than two thirds: with less, colluding sites let a dishonest aggregator restore both secrets
    of a site. Bonawitz et al. 2017, section 6.2.
    """
    return 2 * sites // 3 + 1


def split_secret(secret: bytes, threshold: int, sites: int) -> list[bytes]:
    """Return one share for each place of the roster, of which a threshold restores the secret."""
    assert len(secret) == SECRET_BYTES, "secrets here are keys of 32 bytes"
    assert 1 <= threshold <= sites
    polynomial = [int.from_bytes(secret, "big")]
    polynomial += [randbelow(PRIME) for _ in range(threshold - 1)]
    return [_value(polynomial, place).to_bytes(SHARE_BYTES, "big") for place in range(1, sites + 1)]


def restore_secret(shares: Mapping[int, bytes], threshold: int) -> bytes:
    """Return the secret of which these are shares, by the place (from 0) of their holders.

    Raises `BadUpdate` where they are too few, or not shares of one secret.
    """
    if len(shares) < threshold:
        raise BadUpdate(f"{len(shares)} sites gave their share of a key; {threshold} are needed")
    points = {place + 1: int.from_bytes(share, "big") for place, share in shares.items()}
    chosen = dict(sorted(points.items())[:threshold])
    secret = _interpolate(chosen, 0)
    consistent = all(_interpolate(chosen, place) == value for place, value in points.items())
    if not consistent or secret >= 2 ** (8 * SECRET_BYTES):
        raise BadUpdate("the sites' shares are not of one key: one of them was changed")
    return secret.to_bytes(SECRET_BYTES, "big")


def _value(polynomial: list[int], at: int) -> int:
    """Evaluate by Horner's rule."""
    value = 0
    for coefficient in reversed(polynomial):
        value = (value * at + coefficient) % PRIME
    return value


def _interpolate(points: Mapping[int, int], at: int) -> int:
    """Return the value of the lowest polynomial through the points, by Lagrange's formula."""
    total = 0
    for place, value in points.items():
        above, below = value, 1
        for other in points:
            if other != place:
                above = above * (at - other) % PRIME
                below = below * (place - other) % PRIME
        total += above * pow(below, -1, PRIME)
    return total % PRIME
