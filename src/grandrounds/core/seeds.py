"""The seed of a generator depends on its purpose, not on what ran before."""

import hashlib


def seed_for(*address: str | int) -> int:
    """Return the 63-bit seed of one purpose.

    An example is `seed_for(study.seed, site, round, "batches")`. The seed is the same on every
    machine, in every process and in any order of calls.
    """
    text = "\x1f".join(str(part) for part in address)
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1
