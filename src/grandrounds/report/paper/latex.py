"""LaTeX tables are written here as `tabular` environments of booktabs, with rounded numbers."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from grandrounds.report.analysis.statistics import Interval

PLAIN_DIGITS = 2  # decimals where there is no interval to choose them by
MOST_DIGITS = 4
SPECIAL = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    "\u2026": r"\dots{}",
    "\u00a0": "~",
    **{letter: f"\\{letter}" for letter in "&%$#_{}"},
}


@dataclass(frozen=True)
class LatexTable:
    r"""One `tabular`: every cell is LaTeX; `columns` is its column specification."""

    columns: str
    heads: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    note: str = ""

    def text(self) -> str:
        """Return the table's LaTeX, with the note before it as a comment."""
        lines = [*(f"% {line}" for line in self.note.splitlines())]
        lines += [rf"\begin{{tabular}}{{{self.columns}}}", r"\toprule", _row(self.heads)]
        lines += [r"\midrule", *(_row(row) for row in self.rows), r"\bottomrule"]
        return "\n".join([*lines, r"\end{tabular}", ""])


def _row(cells: Iterable[str]) -> str:
    return " & ".join(cells) + r" \\"


def escaped(words: str) -> str:
    """Return plain words escaped for LaTeX; "->" becomes an arrow."""
    parts = words.replace("\u2192", "->").split("->")
    return r"$\rightarrow$".join("".join(SPECIAL.get(c, c) for c in part) for part in parts)


def bold(text: str) -> str:
    """Return text in bold."""
    return rf"\textbf{{{text}}}"


def digits(intervals: Iterable[Interval | None]) -> int:
    """Return the decimals that a column supports: two digits of half its widest interval."""
    halves = [(each.high - each.low) / 2 for each in intervals if each and each.high > each.low]
    if not halves:
        return PLAIN_DIGITS
    return min(max(1 - math.floor(math.log10(max(halves))), 0), MOST_DIGITS)


def number(value: float, decimals: int, *, signed: bool = False) -> str:
    """Write a number with a real minus, and a plus if `signed`; zero has no sign."""
    size = f"{abs(value):.{decimals}f}"
    sign = "" if not float(size) else "$-$" if value < 0 else "$+$" if signed else ""
    return f"{sign}{size}"


def interval_text(interval: Interval | None, decimals: int, *, signed: bool = False) -> str:
    """Write an interval in brackets; empty where none is."""
    if interval is None:
        return ""
    ends = (number(end, decimals, signed=signed) for end in (interval.low, interval.high))
    return f"[{', '.join(ends)}]"


def best_rows(values: Sequence[float | None], decimals: int, *, highest: bool) -> list[bool]:
    """Tell which values print as the best one."""
    printed = [None if value is None else round(value, decimals) for value in values]
    known = [value for value in printed if value is not None]
    top = (max if highest else min)(known, default=None)
    return [value is not None and value == top for value in printed]


def p_value_text(p: float | None) -> str:
    """Write a p-value; a dash where no test was made."""
    if p is None:
        return "--"
    return "$<$0.001" if p < 0.001 else f"{p:.3f}"
