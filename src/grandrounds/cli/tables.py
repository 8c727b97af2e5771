"""The tables that the program prints are printed whole.

Rich cuts what a column has no room for, and a name or a number that is cut is lost to its reader.
"""

from rich.console import Console
from rich.table import Table

from grandrounds.api.progress import plain_console

WIDEST = 100_000  # letters of a row in a pipe


def print_table(table: Table, console: Console | None = None) -> None:
    """Print a table on stdout, or on a console; in a pipe it gets its full width."""
    console = console or plain_console()
    for column in table.columns:
        column.overflow = "fold"
    if not console.is_terminal:
        unbounded = console.options.update(max_width=WIDEST)
        wide = console.measure(table, options=unbounded).maximum
        console = plain_console(file=console.file, width=max(console.width, wide))
    console.print(table)
