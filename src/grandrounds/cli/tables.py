"""A table is printed whole: a narrow terminal folds its words, and a pipe gets its full width.

Rich cuts what a column has no room for; a name or a number that is cut is lost to its reader.
"""

from rich.console import Console
from rich.table import Table

WIDEST = 100_000  # letters of a row in a pipe


def print_table(table: Table, console: Console | None = None) -> None:
    """Print a table on stdout, or on a console."""
    console = console or Console(markup=False)
    for column in table.columns:
        column.overflow = "fold"
    if not console.is_terminal:
        unbounded = console.options.update(max_width=WIDEST)
        wide = console.measure(table, options=unbounded).maximum
        console = Console(file=console.file, width=max(console.width, wide), markup=False)
    console.print(table)
