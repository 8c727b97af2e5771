"""What is found in which images: task labels of classification, and slices as its examples."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import isnan

import numpy as np
import torch
from torch import Generator, Tensor

from grandrounds.data.case import Cohort, Session, Split
from grandrounds.data.elements import Elements
from grandrounds.data.inspect import serves
from grandrounds.errors import BadSite
from grandrounds.tasks.checks import check_contrasts, require
from grandrounds.tasks.slices import pseudonyms_of, visits_of
from grandrounds.tasks.task import Batch, Case

EXAMPLE = 'write it as "SOURCE+SOURCE->TARGET", for example "FLAIR->lesion"'


@dataclass(frozen=True)
class Finding:
    """One classification task: which contrasts are looked at, and what is found in them."""

    sources: tuple[str, ...]
    target: str

    @staticmethod
    def parse(label: str) -> "Finding":
        """Read a label such as "T1w+FLAIR->lesion". Raises `ValueError`."""
        sources, target = label.split("->")
        return Finding(tuple(word.strip() for word in sources.split("+")), target.strip())

    @property
    def label(self) -> str:
        """Write the label."""
        return f"{'+'.join(self.sources)}->{self.target}"


def check_findings(sites: Mapping[str, Sequence[str]], elements: Elements) -> None:
    """Refuse labels that are none of classification, or of different targets. Raises `BadStudy`."""
    for site, labels in sites.items():
        for label in labels:
            _check_label(f"site '{site}', task '{label}'", label, elements)
    targets = {Finding.parse(label).target for labels in sites.values() for label in labels}
    require(
        len(targets) <= 1,
        f"the sites' tasks have the targets {', '.join(sorted(targets))}; "
        "a classifier has one, the same for all",
    )


def _check_label(where: str, label: str, elements: Elements) -> None:
    require(label.count("->") == 1, f"{where}: {EXAMPLE}")
    finding = Finding.parse(label)
    check_contrasts(where, finding.sources, elements)
    require(
        len(set(finding.sources)) == len(finding.sources), f"{where}: a name stands there twice"
    )
    named = finding.target and finding.target not in elements.contrasts
    require(bool(named) and "+" not in finding.target, f"{where}: it has no one target; {EXAMPLE}")


@dataclass(frozen=True)
class Reading:
    """How a slice becomes an example: the network's contrasts, and when its label is 1.

    A mask is found where it has `least_pixels` in the slice, a variable where it is 1.
    """

    contrasts: tuple[str, ...]
    least_pixels: int

    def source(self, session: Session, index: int, finding: Finding) -> Tensor:
        """Give a slice, (C, H, W) in [0, 1]; a contrast that is not looked at is 0."""
        _, _, height, width = session.images.shape
        source = np.zeros((len(self.contrasts), height, width), np.float32)
        for name in finding.sources:
            source[self.contrasts.index(name)] = session.image(index, name)
        return torch.from_numpy(source)  # pyright: ignore[reportUnknownMemberType]

    def label(self, session: Session, index: int, finding: Finding) -> float:
        """Give 1 or 0."""
        if finding.target in session.values:
            return session.values[finding.target]
        pixels = np.count_nonzero(session.masks[finding.target][index])
        return float(pixels >= self.least_pixels)


@dataclass(frozen=True)
class Image:
    """One slice of one session, and the findings that it can serve at its site.

    `patient` is a pseudonym and `visit` a number: what the site calls either says too much.
    """

    site: str
    patient: str
    visit: int
    session: Session
    index: int
    findings: tuple[Finding, ...]


@dataclass(frozen=True)
class Images:
    """Examples of classification, flipped left to right with probability `flip` in training.

    Of an image with several findings one is drawn when a generator is given.
    """

    images: tuple[Image, ...]
    reading: Reading
    flip: float

    def __len__(self) -> int:
        """Count the images."""
        return len(self.images)

    def batch(self, indices: Sequence[int], generator: Generator | None) -> Batch:
        """Collate images: source (B, C, H, W) in [0, 1] and target (B, 1), 0 or 1."""
        chosen = [self.images[index] for index in indices]
        findings = [_drawn(each.findings, generator) for each in chosen]
        pairs = list(zip(chosen, findings, strict=True))
        sources = [self.reading.source(i.session, i.index, f) for i, f in pairs]
        labels = [self.reading.label(i.session, i.index, f) for i, f in pairs]
        return {
            "source": torch.stack([self._flipped(source, generator) for source in sources]),
            "target": torch.tensor(labels)[:, None],
        }

    def _flipped(self, source_CHW: Tensor, generator: Generator | None) -> Tensor:
        if generator is None or float(torch.rand((), generator=generator)) >= self.flip:
            return source_CHW
        return source_CHW.flip(-1)

    def case(self, index: int) -> Case:
        """Name an example."""
        each = self.images[index]
        label = f"{each.visit}/{each.index:03d}"
        return Case(each.site, each.patient, label, each.findings[0].label)


def _drawn(findings: tuple[Finding, ...], generator: Generator | None) -> Finding:
    if generator is None or len(findings) == 1:
        return findings[0]
    return findings[int(torch.randint(len(findings), (), generator=generator))]


def images_of(
    cohort: Cohort, split: Split, findings: Sequence[Finding], *, each: bool
) -> tuple[Image, ...]:
    """List a split's slices that can serve at least one finding; `each` lists one for every one.

    Raises `BadSite` where a patient's variable is neither 0 nor 1.
    """
    pseudonyms, visits = pseudonyms_of(cohort), visits_of(cohort)
    found: list[Image] = []
    for session in cohort.splits[split]:
        served = tuple(_served(cohort.site, session, findings))
        choices = [(finding,) for finding in served] if each else [served] if served else []
        who = (cohort.site, pseudonyms[session.patient], visits[session.label], session)
        found += [Image(*who, i, choice) for choice in choices for i in range(session.num_slices)]
    return tuple(found)


def _served(site: str, session: Session, findings: Sequence[Finding]) -> Iterator[Finding]:
    for finding in findings:
        value = session.values.get(finding.target, 0.0)
        if serves(session, finding.label) and not isnan(value):
            if value not in (0.0, 1.0):
                raise BadSite(
                    f"site '{site}': a patient's {finding.target} is {value:g}; "
                    "classification needs 0 or 1."
                )
            yield finding
