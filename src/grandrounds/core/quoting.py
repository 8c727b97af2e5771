"""Words of others are written here so that Markdown and spreadsheets show them, and do no more.

A study's fields, notes of sites and pseudonyms are chosen elsewhere; a reader of a card or a table
must neither follow a link nor run a formula that is in them.
"""

import re
from collections.abc import Iterable, Mapping, Sequence


class Markdown(str):
    """Text that is Markdown already."""

    __slots__ = ()


_ACTING = re.compile(r"[\x00-\x20\x7f-\xa0\u2028\u2029\u200e\u200f\u202a-\u202e\u2066-\u2069]+")
# GitHub makes links of bare addresses; between backticks it does not.
_ADDRESS = re.compile(r"[^\s|`\\]*(?:://|www\.|@|mailto:|xmpp:)[^\s|`\\]*", re.IGNORECASE)
_SPECIAL = re.compile(
    r"""[\\`*~|$]               # escapes, code, emphasis, cells, formulas
    | (?<![A-Za-z0-9])_ | _(?![A-Za-z0-9])  # emphasis, except within a word
    | \](?=[(\[:])              # the middle of a link, the end of its definition
    | ^(?:[-+](?=\s|$) | [#>] | =+$ | -+$ | [0-9]+[.)](?=\s|$))  # a list, a heading, a quotation
    """,
    re.VERBOSE,
)
_FORMULA = re.compile(r"'*[=+\-@\t\r\n\uff1d\uff0b\uff0d\uff20]")  # the last: their wide forms
_NUMBER = re.compile(r"[+-]?(?:(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?|inf|nan)")
_IN_QUOTES = re.compile(r"""[",;\t\r\n]""")  # ';' and tab part cells in some countries


def for_markdown(value: object) -> str:
    """Return a value as one line of Markdown that shows its text: no tag, link, cell or heading."""
    if isinstance(value, Markdown):
        return value
    text = _ACTING.sub(" ", str(value)).strip()
    parts, end = list[str](), 0
    for address in _ADDRESS.finditer(text):
        parts += [_escaped(text[end : address.start()]), f"`{address.group()}`"]
        end = address.end()
    return "".join([*parts, _escaped(text[end:])])


def code_span(value: object) -> Markdown:
    """Return a value as Markdown between backticks where it is one plain word, else escaped."""
    word = str(value)
    return Markdown(f"`{word}`" if re.fullmatch(r"[A-Za-z0-9]+", word) else for_markdown(word))


def _escaped(text: str) -> str:
    escaped = _SPECIAL.sub(_with_backslash, text)
    return re.sub(r"&(?=#?\w+;)", "&amp;", escaped).replace("<", "&lt;")


def _with_backslash(special: re.Match[str]) -> str:
    return f"{special.group()[:-1]}\\{special.group()[-1]}"


def table_text(columns: Sequence[str], rows: Iterable[Mapping[str, object]]) -> str:
    """Return a table as CSV, a line for each row; a missing value is an empty cell.

    Text that a spreadsheet would take for a formula begins with an apostrophe: `original` removes
    it again. Numbers stay as they are.
    """
    lines = [columns, *([row.get(name) for name in columns] for row in rows)]
    return "".join(f"{','.join(map(_cell, line))}\n" for line in lines)


def original(cell: str) -> str:
    """Return the text of a cell that `table_text` wrote."""
    return cell[1:] if cell.startswith("'") and _FORMULA.match(cell) else cell


def _cell(value: object) -> str:
    text = "" if value is None else str(value)
    if _FORMULA.match(text) and not _NUMBER.fullmatch(text):
        text = f"'{text}"
    return '"{}"'.format(text.replace('"', '""')) if _IN_QUOTES.search(text) else text
