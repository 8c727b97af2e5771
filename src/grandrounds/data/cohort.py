"""A cohort holds a site's sessions, split by patient once and for all by a stable hash."""

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from fractions import Fraction
from hashlib import sha256
from itertools import groupby
from operator import itemgetter
from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from grandrounds.core.errors import BadSite
from grandrounds.core.sentence import phrase
from grandrounds.data.acquisition import ScanProtocol
from grandrounds.data.elements import ALL_TESTED, Fractions

SplitName: TypeAlias = Literal["train", "validation", "test"]
HEADROOM = 1.2  # in images, the 99th percentile inside the brain becomes 1 / HEADROOM
NAMELESS = "image-"  # begins the ID of a patient that no array names
SPLITS: tuple[SplitName, ...] = ("train", "validation", "test")


@dataclass(frozen=True)
class Extent:
    """How much of a structure, in mm3, its file has, the study's window shows, and is kept.

    What is kept is resampled and has the kept slices alone. `labels` are the file's values for it;
    `soft` are probabilities, cut at one half. `outside` of the mask of the brain lies this much.
    """

    outlined: float
    shown: float
    kept: float
    labels: tuple[float, ...] = (1.0,)
    soft: bool = False
    outside: float = 0.0

    @property
    def lost(self) -> bool:
        """Tell whether a structure that the file has is gone."""
        return self.outlined > 0 and self.kept == 0


@dataclass(frozen=True)
class Session:
    """One scanning session of one patient, prepared and on one grid.

    `images` is float32 (slice, contrast, height, width) in [0, 1], often a read-only memory map;
    `contrasts` names its second axis; `masks` maps "brain", "lesion" or a tissue to uint8 (slice,
    height, width); `values` are the patient's variables, NaN where one is missing. `digest` is of
    images and masks, where it is known from their files; `prints` are digests of images alone, by
    which the same ones are found under another ID. `heights` are the slices' places in mm, where
    they are known; `extents` say what became of each mask, and of the "head" without a mask.
    `protocols` maps contrasts to how they were scanned, in studies whose network reads that.
    `spacing` is that of slices, rows and columns in mm before preparation, where it is known.
    """

    patient: str
    session: str
    contrasts: tuple[str, ...]
    images: NDArray[np.float32]
    masks: Mapping[str, NDArray[np.uint8]] = field(default_factory=dict[str, NDArray[np.uint8]])
    values: Mapping[str, float] = field(default_factory=dict[str, float])
    digest: str = field(default="", compare=False)
    prints: tuple[str, ...] = field(default=(), compare=False)
    heights: tuple[float, ...] = field(default=(), compare=False)
    extents: Mapping[str, Extent] = field(default_factory=dict[str, Extent], compare=False)
    protocols: Mapping[str, ScanProtocol] = field(default_factory=dict[str, ScanProtocol])
    spacing: tuple[float, ...] = field(default=(), compare=False)

    @property
    def num_slices(self) -> int:
        return self.images.shape[0]

    @property
    def label(self) -> str:
        """Return the patient's ID, followed by the session's ID where there is one."""
        return f"{self.patient}_{self.session}" if self.session else self.patient

    def image(self, slice_index: int, contrast: str) -> NDArray[np.float32]:
        """Return one slice of one contrast, (height, width)."""
        return self.images[slice_index, self.contrasts.index(contrast)]


@dataclass(frozen=True)
class Cohort:
    """All prepared sessions of one site, split by patient: no patient is in two splits."""

    site: str
    splits: Mapping[SplitName, tuple[Session, ...]]

    def __iter__(self) -> Iterator[Session]:
        """Yield the sessions of all splits."""
        for split in SPLITS:
            yield from self.splits[split]

    def patients(self, split: SplitName) -> tuple[str, ...]:
        """Return the patients of a split, each once, in order of appearance."""
        return tuple(dict.fromkeys(session.patient for session in self.splits[split]))


def data_digest(cohorts: Iterable[Cohort]) -> str:
    """Return a SHA-256 of all that a site trains on and is tested with, and of its splits."""
    sha = sha256()
    for cohort in cohorts:
        for split in SPLITS:
            for session in cohort.splits[split]:
                sha.update(_described(cohort.site, split, session).encode())
    return sha.hexdigest()


def _described(site: str, split: str, session: Session) -> str:
    values = sorted((name, float(value)) for name, value in session.values.items())
    arrays = session.digest or _digest_of_arrays(session)
    facts: list[object] = [site, split, session.patient, session.session, session.contrasts]
    facts += [values, arrays]
    if session.protocols:  # only where the network reads them: else a sidecar changes nothing
        facts.append(sorted((name, asdict(scan)) for name, scan in session.protocols.items()))
    return json.dumps(facts)


def _digest_of_arrays(session: Session) -> str:
    sha = sha256()
    for name, array in sorted({"images": session.images, **session.masks}.items()):
        sha.update(f"{name}|{array.dtype}|{array.shape}|".encode())
        sha.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
    return sha.hexdigest()


def split_patients(
    patients: Iterable[str], fractions: Fractions, *, site: str
) -> dict[str, SplitName]:
    """Assign each patient to one split, the same on every machine and in any order of `patients`.

    The patients are ranked by the SHA-256 of "site/patient" and the fractions' salt, and assigned
    by largest remainder; train and test get at least one patient each, unless none is to train.
    Raises `BadSite` with fewer than 2 patients.
    """
    if fractions == ALL_TESTED:
        return dict.fromkeys(sorted(set(patients)), "test")
    prefix = f"{fractions.salt}{site}/"
    ranked = sorted(set(patients), key=lambda patient: (_rank(prefix + patient), patient))
    if len(ranked) < 2:
        raise BadSite(
            f"site '{site}': {len(ranked)} {'patient' if len(ranked) == 1 else 'patients'} "
            "cannot be split into train and test; a site needs at least 2 patients.",
            safe=phrase(
                "{number} of at least 2 patients, who are split into train and test",
                number=len(ranked),
            ),
        )
    counts = _counts(len(ranked), fractions)
    assigned: list[SplitName] = [split for split in SPLITS for _ in range(counts[split])]
    return dict(zip(ranked, assigned, strict=True))


def _rank(patient: str) -> str:
    return sha256(patient.encode()).hexdigest()


def _counts(total: int, fractions: Fractions) -> dict[SplitName, int]:
    # Exact decimals: 0.7 of 10 patients is 7, whatever 0.7 is in binary.
    shares: dict[SplitName, Fraction] = {
        "train": Fraction(str(fractions.train)) * total,
        "validation": Fraction(str(fractions.validation)) * total,
        "test": Fraction(str(fractions.test)) * total,
    }
    counts: dict[SplitName, int] = {split: int(share) for split, share in shares.items()}
    # Of equal remainders the emptier split wins, so that 5 patients give 3, 1 and 1.
    by_remainder = sorted(SPLITS, key=lambda s: (counts[s] - shares[s], counts[s]))
    for split in by_remainder[: total - sum(counts.values())]:
        counts[split] += 1
    for split in ("train", "test"):
        if not counts[split]:
            # Where a split needs its only patient, another split gives one.
            counts[max(SPLITS, key=lambda s: counts[s] - (s != "validation"))] -= 1
            counts[split] = 1
    return counts


def pseudonyms_of(cohort: Cohort) -> Mapping[str, str]:
    """Return the patients' pseudonyms, numbered in an order that reveals nothing of names."""
    patients = {session.patient for session in cohort}
    ordered = sorted(patients, key=lambda p: sha256(f"{cohort.site}/{p}".encode()).hexdigest())
    return {patient: f"p{number:03d}" for number, patient in enumerate(ordered, start=1)}


def visits_of(cohort: Cohort) -> Mapping[str, int]:
    """Return each session's number among its patient's, in the order of their labels."""
    labels = sorted((session.patient, session.label) for session in cohort)
    numbers = groupby(labels, key=itemgetter(0))
    return {label: n for _, pairs in numbers for n, (_, label) in enumerate(pairs, start=1)}
