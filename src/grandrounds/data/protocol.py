"""How each volume of a site was scanned, for networks that read a code of that and no site's name.

It is read anew from sidecars and headers whenever a site is opened, beside the cache of prepared
slices, which do not depend on it: a changed sidecar is noticed, and no image is prepared again.
"""

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, fields, replace
from math import sqrt
from pathlib import Path
from typing import Any, TypeAlias

from grandrounds.core.errors import BadFolder
from grandrounds.core.sentence import Name, Sentence, phrase
from grandrounds.core.serialization import from_plain
from grandrounds.data.acquisition import Acquisition, ScanProtocol, read_acquisition
from grandrounds.data.cohort import Cohort, Session, SplitName
from grandrounds.data.elements import Elements
from grandrounds.data.nifti import read_grid
from grandrounds.data.remarks import of_all, some
from grandrounds.data.session_files import SessionFiles
from grandrounds.data.simulation.simulate import SLAB, Scanner

Protocols: TypeAlias = Mapping[str, ScanProtocol]  # by contrast

NO_PROTOCOLS: Protocols = {}


def with_protocols(
    cohort: Cohort, files: Sequence[SessionFiles]
) -> tuple[Cohort, tuple[Sentence, ...]]:
    """Return a cohort whose sessions know how they were scanned, and notes on what is unknown.

    The notes are counts. Raises `BadImage` where a sidecar is no JSON object.
    """
    of_session = {(each.patient, each.session): each.contrasts for each in files}
    doubts = 0
    splits: dict[SplitName, tuple[Session, ...]] = {}
    for split, sessions in cohort.splits.items():
        made: list[Session] = []
        for session in sessions:
            paths = of_session[session.patient, session.session]
            found = {contrast: read_protocol(paths[contrast]) for contrast in session.contrasts}
            doubts += sum(doubted for _, doubted in found.values())
            scans = {contrast: scan for contrast, (scan, _) in found.items()}
            made.append(replace(session, protocols=scans))
        splits[split] = tuple(made)
    coded = replace(cohort, splits=splits)
    return coded, (*protocol_notes(coded), *_doubted(doubts))


def read_protocol(volume: Path) -> tuple[ScanProtocol, int]:
    """Read how a volume was scanned, and how many values of its sidecar are not credible.

    Raises `BadImage`.
    """
    acquisition, doubts = read_acquisition(volume)
    thickness, rows, columns = read_grid(volume).spacing
    return ScanProtocol(acquisition, thickness, sqrt(rows * columns)), len(doubts)


def protocol_of(volume: Path, usual: ScanProtocol | None) -> ScanProtocol | None:
    """Return how a volume was scanned: without a sidecar as usual, but for its voxels.

    Where nothing is usual no network reads it, and no sidecar is opened. Raises `BadImage`.
    """
    if usual is None:
        return None
    scan, _ = read_protocol(volume)
    if scan.acquisition == Acquisition():
        return replace(scan, acquisition=usual.acquisition)
    return scan


def protocol_notes(cohort: Iterable[Session]) -> tuple[Sentence, ...]:
    """Count by contrast the volumes of which no setting is known, or not the family."""
    found: dict[str, list[Acquisition]] = {}
    for session in cohort:
        for contrast in session.contrasts:
            scan = session.protocols.get(contrast, ScanProtocol())
            found.setdefault(contrast, []).append(scan.acquisition)
    notes: list[Sentence] = []
    for contrast, scans in found.items():
        known = [scan for scan in scans if scan != Acquisition()]
        if lacking := len(scans) - len(known):
            notes.append(
                phrase(
                    "{contrast}: {volumes} have no sidecar that says how they were acquired, so "
                    "their protocol code is that of an unknown scanner",
                    contrast=Name(contrast),
                    volumes=of_all(lacking, len(scans), "volume"),
                )
            )
        if lacking := sum(scan.family is None for scan in known):
            notes.append(
                phrase(
                    "{contrast}: {volumes} have a sidecar without the sequence family",
                    contrast=Name(contrast),
                    volumes=of_all(lacking, len(scans), "volume"),
                )
            )
    return tuple(notes)


def _doubted(doubts: int) -> tuple[Sentence, ...]:
    if not doubts:
        return ()
    value = some(doubts, "value")
    return (phrase("{values} in sidecars cannot be: taken as unknown", values=value),)


def simulated_protocols(scanner: Scanner, elements: Elements, slices: int) -> Protocols:
    """Return how a simulated scanner acquires each of the study's contrasts."""
    rows, columns = elements.spacing
    thickness = 2 * SLAB / (slices - 1) if slices > 1 else None
    found: dict[str, ScanProtocol] = {}
    for contrast in elements.contrasts:
        sequence = scanner.protocol[contrast]
        acquisition = Acquisition(
            family=sequence.kind,
            repetition_time=sequence.tr,
            echo_time=sequence.te,
            inversion_time=sequence.ti,
            flip_angle=sequence.flip,
            field_strength=scanner.field,
        )
        found[contrast] = ScanProtocol(acquisition, thickness, sqrt(rows * columns))
    return found


def usual_protocols(sessions: Iterable[Session]) -> Protocols:
    """Return, value by value, how most sessions with a contrast were scanned.

    Values of equal count are decided for the smaller. What most do not know is unknown.
    """
    found: dict[str, list[ScanProtocol]] = {}
    for session in sessions:
        for contrast, scan in session.protocols.items():
            found.setdefault(contrast, []).append(scan)
    return {contrast: _usual(scans) for contrast, scans in found.items()}


def _usual(scans: Sequence[ScanProtocol]) -> ScanProtocol:
    acquisitions = [scan.acquisition for scan in scans]
    names = [each.name for each in fields(Acquisition)]
    common = {name: _most([getattr(each, name) for each in acquisitions]) for name in names}
    return ScanProtocol(
        Acquisition(**common),
        _most([scan.thickness for scan in scans]),
        _most([scan.pixel for scan in scans]),
    )


def _most(values: Sequence[Any]) -> Any:
    return min(Counter(values).items(), key=lambda item: (-item[1], str(item[0])))[0]


def protocols_to_text(usual: Mapping[str, Protocols]) -> str:
    """Write the usual protocols of sites as JSON."""
    plain = {site: {c: asdict(p) for c, p in found.items()} for site, found in usual.items()}
    return json.dumps(plain, indent=2) + "\n"


def protocols_from_text(text: str, where: object) -> Mapping[str, Protocols]:
    """Read the usual protocols of sites. Raises `BadFolder`."""
    try:
        found = json.loads(text)
        return {
            site: {c: from_plain(ScanProtocol, plain) for c, plain in protocols.items()}
            for site, protocols in found.items()
        }
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise BadFolder(f"{where}: is damaged ({error}); restore it from a copy") from None
