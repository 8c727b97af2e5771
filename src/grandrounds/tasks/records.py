"""Patients as rows of numbers: each site's variables on its own scale, and what is missing."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Generator

from grandrounds.data.case import Cohort, Session, Split
from grandrounds.data.inspect import VARIABLES, serves
from grandrounds.tasks.slices import pseudonyms_of, visits_of
from grandrounds.tasks.task import Batch, Case


@dataclass(frozen=True)
class Variables:
    """Which variables are read, and above what the target is positive."""

    inputs: tuple[str, ...]
    target: str
    threshold: float

    @property
    def label(self) -> str:
        """Write the task's label."""
        return f"{VARIABLES}->{self.target}"

    @property
    def width(self) -> int:
        """Count what the network reads: each variable, and whether it is missing."""
        return 2 * len(self.inputs)

    def values(self, sessions: Sequence[Session]) -> NDArray[np.float64]:
        """Give the inputs of sessions, (session, variable), nan where one is missing."""
        rows = [[session.values[name] for name in self.inputs] for session in sessions]
        return np.array(rows, np.float64).reshape(-1, len(self.inputs))


@dataclass(frozen=True)
class Scale:
    """Mean and standard deviation of each variable over a site's own training patients.

    They stay at the site. A variable that it never measured has mean 0, and one that does not vary
    deviation 1.
    """

    mean: NDArray[np.float64]
    deviation: NDArray[np.float64]

    @staticmethod
    def of(values: NDArray[np.float64]) -> "Scale":
        """Measure values (session, variable), leaving out what is missing."""
        known = ~np.isnan(values)
        count = known.sum(axis=0).clip(1)
        mean = np.where(known, values, 0).sum(axis=0) / count
        deviation = np.sqrt((np.where(known, values - mean, 0) ** 2).sum(axis=0) / count)
        return Scale(mean, np.where(deviation > 0, deviation, 1.0))

    def __call__(self, values: NDArray[np.float64]) -> NDArray[np.float32]:
        """Standardise; what is missing becomes the mean, 0, and a 1 in the second half says so."""
        missing = np.isnan(values)
        standard = np.where(missing, 0.0, (values - self.mean) / self.deviation)
        return np.concatenate([standard, missing], axis=1).astype(np.float32)


@dataclass(frozen=True)
class Row:
    """One patient: what the network reads, (2 x variables,), and whether the target is positive."""

    case: Case
    source: NDArray[np.float32]
    positive: bool


@dataclass(frozen=True)
class Rows:
    """Examples of a table."""

    rows: tuple[Row, ...]

    def __len__(self) -> int:
        """Count the rows."""
        return len(self.rows)

    def batch(self, indices: Sequence[int], generator: Generator | None) -> Batch:
        """Collate rows: source (B, 2 x variables) and target (B, 1), 0 or 1; nothing is drawn."""
        del generator
        chosen = [self.rows[index] for index in indices]
        source = np.stack([row.source for row in chosen])
        return {
            "source": torch.from_numpy(source),  # pyright: ignore[reportUnknownMemberType]
            "target": torch.tensor([[float(row.positive)] for row in chosen]),
        }

    def case(self, index: int) -> Case:
        """Name an example."""
        return self.rows[index].case


def rows_of(cohort: Cohort, split: Split, variables: Variables) -> tuple[Row, ...]:
    """List the patients of a split whose target is known, on the site's own scale.

    `patient` is a pseudonym and `visit` a number: what the site calls either says too much.
    """
    pseudonyms, visits = pseudonyms_of(cohort), visits_of(cohort)
    scale = Scale.of(variables.values(cohort.splits["train"]))
    served = [session for session in cohort.splits[split] if serves(session, variables.label)]
    sources = scale(variables.values(served))
    return tuple(
        Row(
            Case(
                cohort.site,
                pseudonyms[session.patient],
                str(visits[session.label]),
                variables.label,
            ),
            source,
            session.values[variables.target] > variables.threshold,
        )
        for session, source in zip(served, sources, strict=True)
    )
