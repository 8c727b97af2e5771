"""Sentences on the angles between the sites' updates are written here: who pulls against whom."""

from collections.abc import Mapping
from statistics import fmean

from grandrounds.report.analysis.cosines import (
    ALL_SHARED,
    NEAR,
    Angles,
    ComparedUpdates,
    SitePair,
    own_way,
)
from grandrounds.report.prose.vocabulary import MINUS, TIED, counted, display_name, join_words


def part_name(group: str) -> str:
    """Write a parameter group's name for people."""
    return "everything shared" if group == ALL_SHARED else group.replace("_", " ")


def cosine(value: float) -> str:
    """Write a cosine with two digits and its sign, for example "+0.12"."""
    rounded = f"{abs(value):.2f}"
    return rounded if not float(rounded) else f"{'+' if value > 0 else MINUS}{rounded}"


def cosine_range(angles: Angles) -> str:
    """Write the lowest and the highest cosine."""
    return f"{cosine(min(angles.values()))} to {cosine(max(angles.values()))}"


def direction(found: ComparedUpdates) -> str:
    """Say how the updates of the newest compared round stand, and what their mean keeps."""
    number = found.rounds[-1]
    angles = found.of(number, ALL_SHARED) or _joined(found.parts(number))
    sites, middle = {site for pair in angles for site in pair}, fmean(angles.values())
    kept = max(0.0, own_way(angles))
    return (
        f"In round {number} the hospitals' updates {_stand(middle)} (mean cosine {cosine(middle)} "
        f"over {counted(len(angles), 'pair')}): a plain mean of {len(sites)} such updates of one "
        f"length keeps {_share(kept)} of each hospital's own way. At right angles it would keep "
        f"{_share(1 / len(sites))}; all of it if all moved alike."
    )


def _share(part: float) -> str:
    return f"{100 * part:.0f}{TIED}%"


def _stand(middle: float) -> str:
    if abs(middle) < NEAR:
        return "stand nearly at right angles"
    return "partly agree" if middle > 0 else "pull against each other"


def _joined(parts: Mapping[str, Angles]) -> Angles:
    """Return each pair's mean over the parts."""
    pairs = dict.fromkeys(pair for angles in parts.values() for pair in angles)
    return {p: fmean(angles[p] for angles in parts.values() if p in angles) for p in pairs}


def conflicts(found: ComparedUpdates) -> str:
    """Count what is near zero, positive and negative by part and pair, and name the ends."""
    cells = [
        (value, group, pair)
        for group, angles in found.parts(found.rounds[-1]).items()
        for pair, value in angles.items()
    ]
    values = [value for value, *_ in cells]
    above, below = sum(v >= NEAR for v in values), sum(v <= -NEAR for v in values)
    near = len(values) - above - below
    ends = f"The lowest is {_cell(*min(cells))}, the highest {_cell(*max(cells))}."
    verdict = "" if below else " No hospital pulls against another."
    return (
        f"The round has {counted(len(values), 'cosine')} by part and pair: "
        f"{near} within {NEAR:g} of zero, {above} positive, {below} negative.{verdict} {ends}"
    )


def _cell(value: float, group: str, pair: SitePair) -> str:
    return f"{cosine(value)} ({part_name(group)}, {join_words([display_name(s) for s in pair])})"
