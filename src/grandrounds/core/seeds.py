"""A generator is seeded by what it is for, not by what ran before."""

import hashlib


def seed_for(*address: str | int) -> int:
    """Give the 63-bit seed of one purpose.

    For example `seed_for(study.seed, site, round, "batches")`. The same on every machine, in every
    process, in any call order.
    """
    text = "\x1f".join(str(part) for part in address)
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1
