"""Who trains and who tests: a site's patients, split once and for all by a stable hash."""

import hashlib
from collections.abc import Iterable
from fractions import Fraction

from grandrounds.data.case import SPLITS, Split
from grandrounds.data.elements import Fractions
from grandrounds.errors import BadSite


def split_patients(patients: Iterable[str], fractions: Fractions, *, site: str) -> dict[str, Split]:
    """Give each patient one split, the same on every machine and in any order of `patients`.

    The patients are ranked by the SHA-256 of "site/patient" and the fractions' salt, and dealt out
    by largest remainder;
    train and test get at least one patient each. Raises `BadSite` with fewer than 2 patients.
    """
    prefix = f"{fractions.salt}{site}/"
    ranked = sorted(set(patients), key=lambda patient: (_rank(prefix + patient), patient))
    if len(ranked) < 2:
        raise BadSite(
            f"site '{site}': {len(ranked)} {'patient' if len(ranked) == 1 else 'patients'} "
            "cannot be split into train and test; a site needs at least 2 patients."
        )
    counts = _counts(len(ranked), fractions)
    dealt: list[Split] = [split for split in SPLITS for _ in range(counts[split])]
    return dict(zip(ranked, dealt, strict=True))


def _rank(patient: str) -> str:
    return hashlib.sha256(patient.encode()).hexdigest()


def _counts(total: int, fractions: Fractions) -> dict[Split, int]:
    # Exact decimals: 0.7 of 10 patients is 7, whatever 0.7 is in binary.
    shares: dict[Split, Fraction] = {
        "train": Fraction(str(fractions.train)) * total,
        "validation": Fraction(str(fractions.validation)) * total,
        "test": Fraction(str(fractions.test)) * total,
    }
    counts: dict[Split, int] = {split: int(share) for split, share in shares.items()}
    # Of equal remainders the emptier split wins, so that 5 patients give 3, 1 and 1.
    by_remainder = sorted(SPLITS, key=lambda s: (counts[s] - shares[s], counts[s]))
    for split in by_remainder[: total - sum(counts.values())]:
        counts[split] += 1
    for split in ("train", "test"):
        if not counts[split]:
            # Not the only patient of the other split that needs one.
            counts[max(SPLITS, key=lambda s: counts[s] - (s != "validation"))] -= 1
            counts[split] = 1
    return counts
