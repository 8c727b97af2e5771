"""What a site's files cost, or were read as, is counted and put in sentences that may leave."""

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence, Set
from math import inf, isnan
from typing import LiteralString

from grandrounds.core.sentence import Name, Sentence, phrase
from grandrounds.data.cohort import NAMELESS, Extent, Session
from grandrounds.data.nifti import Grid
from grandrounds.data.space import Remark

_STRUCTURES: Mapping[str, LiteralString] = {
    "brain": "the brain",
    "lesion": "lesions",
    "head": "the head (no brain mask)",
}
_HEADERS: Mapping[Remark, LiteralString] = {
    "unit": "give lengths in metres or microns: read as such, in mm",
    "identity": "have the identity as their transform, as files have whose header was lost: voxels "
    "of 1 mm, and what is left and right, are a guess",
    "transforms differ": "have an sform and a qform that differ: the sform is used",
    "a transform is void": "have an sform or a qform that is none: the other one is used",
    "sizes differ": "have voxel sizes (pixdim) that are not their sform's: the sform is used",
}
_HEAD_MAY_LOSE = 0.02  # share of a head that no mask delimits, such as ears and noise
_SIZES = {"brain": (0.05, 3.0), "head": (0.05, 20.0)}  # litres; a newborn's brain has 0.35
_LEAST_KEPT = 0.75  # share of a brain below which more than the ends of it are gone
_MOST_OUTSIDE = 0.1  # share of lesions that may lie outside of the mask of the brain
_KEPT = (0.9, 1.1)  # share of a structure between which a grid leaves it practically as it was
LOSE_ALL: LiteralString = "lose all their"
_ZEROS = re.compile(r"(?<![0-9])0+(?=[0-9])")  # at the front of a number in an ID
_CODES_BELOW, _CODES_ABOVE = (-9.0, -99.0, -999.0, -9999.0), (999.0, 9999.0)
_FAR_ABOVE = 3  # times the largest other value, from where on 999 is no value
_LISTED = 5  # IDs spelled out in one note


def some(number: int, thing: LiteralString) -> Sentence:
    """Return a number of things, in the singular or plural."""
    return phrase("{number} " + thing + ("" if number == 1 else "s"), number=number)


def of_all(number: int, total: int, thing: LiteralString = "session") -> Sentence:
    """Return how many of all there are."""
    return phrase("{number} of {total}", number=number, total=some(total, thing))


def header_notes(grids: Sequence[Grid]) -> tuple[Sentence, ...]:
    """Return what was decided about odd headers, and for how many volumes."""
    found = Counter(remark for grid in grids for remark in grid.remarks)
    return tuple(
        phrase("{volumes} " + words, volumes=of_all(found[remark], len(grids), "volume"))
        for remark, words in _HEADERS.items()
        if found[remark]
    )


def extent_notes(sessions: Iterable[Session]) -> tuple[Sentence, ...]:
    """Return what window, grid and kept slices cost of the brain and of each structure."""
    extents: dict[str, list[Extent]] = {name: [] for name in _STRUCTURES}
    for session in sessions:
        for name, extent in session.extents.items():
            extents[name].append(extent)
    return tuple(
        note
        for name, found in extents.items()
        for make in (_sized, _cut, _sliced, _resampled, _outside, _marked)
        for note in make(name, found)
    )


def _sized(name: str, extents: Sequence[Extent]) -> tuple[Sentence, ...]:
    """Say that a brain or a head has a size that nobody's has: a wrong unit, or a wrong mask."""
    least, most = _SIZES.get(name, (0.0, inf))
    litres = [each.outlined / 1e6 for each in extents]
    odd = [size for size in litres if not least <= size <= most]
    if not odd:
        return ()
    note = phrase(
        "{sessions} have "
        + _STRUCTURES[name]
        + " of a size that nobody's has, such as {size} litres: the voxel sizes of the header are "
        "wrong, or what is marked is something else",
        sessions=of_all(len(odd), len(extents)),
        size=float(f"{odd[0]:.2g}"),
    )
    return (note,)


def _sliced(name: str, extents: Sequence[Extent]) -> tuple[Sentence, ...]:
    """Say that slices are left out which show much of a brain, as a contrast is nothing there."""
    shares = [each.kept / each.shown for each in extents if each.shown]
    fewer = [share for share in shares if share < _LEAST_KEPT]
    if not fewer or name not in _SIZES:
        return ()
    note = phrase(
        "of "
        + _STRUCTURES[name]
        + ", {sessions} keep {least} % or little more: slices are left out where a contrast shows "
        "nothing, as of a slab, or where a mask reaches beyond the image",
        sessions=of_all(len(fewer), len(extents)),
        least=round(100 * min(fewer)),
    )
    return (note,)


def _outside(name: str, extents: Sequence[Extent]) -> tuple[Sentence, ...]:
    shares = [each.outside / each.outlined for each in extents if each.outlined]
    beyond = [share for share in shares if share > _MOST_OUTSIDE]
    if not beyond:
        return ()
    note = phrase(
        "{sessions} have "
        + _STRUCTURES[name]
        + " outside of their mask of the brain, up to {most} %: one of the two masks is wrong",
        sessions=of_all(len(beyond), len(extents)),
        most=round(100 * max(beyond)),
    )
    return (note,)


def _cut(name: str, extents: Sequence[Extent]) -> tuple[Sentence, ...]:
    tolerated = _HEAD_MAY_LOSE if name == "head" else 0.0
    shares = [1 - each.shown / each.outlined for each in extents if each.outlined]
    worse = [share for share in shares if share > max(tolerated, 1e-9)]
    if not worse:
        return ()
    note = phrase(
        "the study's window (size times spacing) cuts away part of "
        + _STRUCTURES[name]
        + " in {sessions}, up to {most} % of it",
        sessions=of_all(len(worse), len(extents)),
        most=max(0.1, round(100 * max(worse), 1)),
    )
    return (note,)


def _resampled(name: str, extents: Sequence[Extent]) -> tuple[Sentence, ...]:
    """Say what is left of a structure; of brain and head, slices at the ends are never kept."""
    there = [each for each in extents if each.outlined]
    if not there or name in ("brain", "head"):
        return ()
    notes: list[Sentence] = []
    shares = [each.kept / each.outlined for each in there]
    if min(shares) < _KEPT[0] or max(shares) > _KEPT[1]:
        notes.append(
            phrase(
                _STRUCTURES[name]
                + ": {before} mm3 in the files, {after} mm3 after preparation (window, slices that "
                "show little brain, resampling); of a session's, {least} to {most} % are kept",
                before=round(sum(each.outlined for each in there)),
                after=round(sum(each.kept for each in there)),
                least=round(100 * min(shares)),
                most=round(100 * max(shares)),
            )
        )
    if lost := sum(each.lost for each in there):
        notes.append(
            phrase(
                "{sessions} "
                + LOSE_ALL
                + " "
                + _STRUCTURES[name]
                + " in preparation: left out of what needs them, as an empty mask would be untrue",
                sessions=of_all(lost, len(extents)),
            )
        )
    return tuple(notes)


def _marked(name: str, extents: Sequence[Extent]) -> tuple[Sentence, ...]:
    notes: list[Sentence] = []
    if soft := sum(each.soft for each in extents):
        notes.append(
            phrase(
                "{masks} of "
                + _STRUCTURES[name]
                + " hold probabilities: a voxel counts above one half",
                masks=of_all(soft, len(extents), "mask"),
            )
        )
    if several := [each for each in extents if len(each.labels) > 1]:
        notes.append(
            phrase(
                "{masks} of "
                + _STRUCTURES[name]
                + " have several labels, up to {high}, and each is read as inside: keep the one "
                "that is meant, if it is one",
                masks=of_all(len(several), len(extents), "mask"),
                high=max(max(each.labels) for each in several),
            )
        )
    marks = sorted({each.labels[0] for each in extents if each.outlined})
    if len(marks) > 1:
        notes.append(
            phrase(
                "masks of "
                + _STRUCTURES[name]
                + " mark with different values, from {low} to {high}; each is read as inside, so "
                "they must mean the same",
                low=marks[0],
                high=marks[-1],
            )
        )
    return tuple(notes)


def unmatched_notes(
    without_row: Sequence[str], without_files: Sequence[str]
) -> tuple[Sentence, ...]:
    """Return how many patients have no row in the table, and how many rows no patient.

    The counts may leave; the notes with IDs are for people at the site alone.
    """
    notes: list[Sentence] = []
    if without_row:
        patients = some(len(without_row), "patient")
        notes.append(phrase("{patients} without a row in participants.tsv", patients=patients))
        notes.append(phrase("without a row: {ids}", ids=_first(without_row)))
    if without_files:
        rows = some(len(without_files), "row")
        notes.append(phrase("{rows} of participants.tsv without a volume", rows=rows))
        notes.append(phrase("without a volume: {ids}", ids=_first(without_files)))
    if padded := {_bare(each) for each in without_row} & {_bare(each) for each in without_files}:
        notes.append(
            phrase(
                "{patients} would have a row if the IDs had the same zeros at the front of their "
                "numbers: a spreadsheet drops them",
                patients=some(len(padded), "patient"),
            )
        )
    return tuple(notes)


def _bare(patient: str) -> str:
    return _ZEROS.sub("", patient)


def coded_notes(sessions: Sequence[Session], variables: Sequence[str]) -> tuple[Sentence, ...]:
    """Return how many values look like a code for a missing one, such as -999."""
    columns = {name: [s.values[name] for s in sessions if name in s.values] for name in variables}
    return tuple(
        phrase(
            "{values} of {name} are {code}, as some programs write a missing one: write n/a where "
            "it is that",
            values=of_all(values.count(code), len(values), "value"),
            name=Name(name),
            code=int(code),
        )
        for name, values in columns.items()
        for code in sorted(_codes(set(values)))
    )


def _codes(values: Set[float]) -> set[float]:
    """Return the codes among values: below 0 where nothing else is, or far above all others."""
    below, above = (
        {v for v in values if v in _CODES_BELOW},
        {v for v in values if v in _CODES_ABOVE},
    )
    others = [v for v in values - below - above if not isnan(v)]
    if not others or min(others) < 0:
        below = set[float]()
    return below | {v for v in above if others and v > _FAR_ABOVE * max(others)}


def nameless_notes(sessions: Iterable[Session]) -> tuple[Sentence, ...]:
    """Say of a stack without IDs that each of its images counts as a patient."""
    if not any(session.patient.startswith(NAMELESS) for session in sessions):
        return ()
    note = phrase(
        "no array says whose each image is: each counts as a patient of its own, and images of one "
        "patient may train and be tested"
    )
    return (note,)


def _first(ids: Sequence[str]) -> tuple[Name, ...]:
    return tuple(Name(each) for each in [*ids[:_LISTED], *(["..."] if len(ids) > _LISTED else [])])
