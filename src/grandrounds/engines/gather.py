"""Replies in roster order, whatever order they come in."""

from collections.abc import Container, Iterable, Iterator, Sequence
from typing import TypeVar

Given = TypeVar("Given")


def in_turn(
    roster: Sequence[str],
    asked: Container[str],
    results: Iterable[tuple[str, Given | Exception]],
    *,
    hurried: bool,
) -> Iterator[tuple[str, Given | Exception]]:
    """Bring results into roster order; hurried, a failure is raised before all others."""
    turns = iter([name for name in roster if name in asked])
    turn = next(turns, None)
    came: dict[str, Given | Exception] = {}
    for site, result in results:
        if hurried:
            given(result)
        came[site] = result
        while turn in came:
            yield turn, came.pop(turn)
            turn = next(turns, None)


def given(result: Given | Exception) -> Given:
    """Give what a site answered. Raises what it failed with."""
    if isinstance(result, Exception):
        raise result
    return result
