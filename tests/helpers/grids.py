"""Grids of cases: a representative of each kind in `make test`, all of them in `make test-all`."""

from collections.abc import Collection, Iterable
from typing import Any, TypeVar

import pytest

Case = TypeVar("Case", str, tuple[str, ...])


def with_representatives(grid: Iterable[Case], kept: Collection[Case]) -> list[Any]:
    """Mark every case of a grid as `full` that is not one of its representatives."""
    cases = list(grid)
    unknown = set(kept) - set(cases)
    assert not unknown, f"no cases of this grid: {sorted(unknown)}"
    return [case if case in kept else _only_in_full(case) for case in cases]


def _only_in_full(case: str | tuple[str, ...]) -> Any:
    values = (case,) if isinstance(case, str) else case
    return pytest.param(*values, marks=pytest.mark.full)
