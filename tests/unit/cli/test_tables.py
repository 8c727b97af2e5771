"""Tables lose no letter, whatever they are printed on."""

import io

import pytest
from rich.console import Console
from rich.table import Table

from grandrounds.cli.tables import print_table

LONG = "a-very-long-name-of-a-hospital-that-no-column-has-room-for-" * 2
NUMBERS = [f"{number}.{number}{number}" for number in range(10, 22)]


def printed(*, terminal: bool) -> str:
    file = io.StringIO()
    table = Table("site", *(f"arm {number}" for number in range(12)), title="Scores")
    table.add_row(LONG, *NUMBERS)
    print_table(table, Console(file=file, width=80, force_terminal=terminal, color_system=None))
    return file.getvalue()


def test_a_pipe_gets_each_row_on_one_line():
    [line] = [line for line in printed(terminal=False).splitlines() if LONG in line]
    assert all(number in line for number in NUMBERS)


@pytest.mark.parametrize("terminal", [True, False])
def test_nothing_is_cut(terminal: bool):
    said = printed(terminal=terminal)
    assert "\u2026" not in said
    letters = "".join(character for character in said if character.isalnum())
    assert letters.count("hospital") >= (2 if not terminal else 0)


def test_a_terminal_of_80_columns_is_not_overrun():
    said = printed(terminal=True)
    assert max(len(line) for line in said.splitlines()) <= 80
    columns = [line.split("\u2502")[1].strip() for line in said.splitlines() if "\u2502" in line]
    assert "".join(columns) == LONG
