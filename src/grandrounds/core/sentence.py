"""A sentence that may leave a site is the program's own template, filled with safe values alone."""

import errno
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import LiteralString, TypeAlias


@dataclass(frozen=True)
class Name:
    """A site, contrast, variable or task; told elsewhere if it stands in the agreed study."""

    text: str


@dataclass(frozen=True)
class Reason:
    """Why the system refused: its own words for an error number, without the file's name."""

    number: int

    @classmethod
    def of(cls, error: OSError) -> "Reason":
        """Return the reason of an error; its texts are not read."""
        number: object = error.errno
        return cls(number if type(number) is int else 0)

    def __str__(self) -> str:
        """Return the system's words; an unknown number has none of its own."""
        return os.strerror(self.number) if self.number in errno.errorcode else "an unknown reason"


Value: TypeAlias = "int | float | Name | Reason | Sentence | tuple[Name, ...]"


@dataclass(frozen=True)
class Sentence:
    """A template of the program and the values of its placeholders.

    The type checker refuses a template that was put together from other texts, and a value that is
    any text.
    """

    template: LiteralString
    values: Mapping[str, Value] = field(default_factory=dict[str, Value])

    def __str__(self) -> str:
        """Return the sentence with all its names, for those at the site."""
        return self.template.format(**{key: _shown(v, None) for key, v in self.values.items()})

    def told(self, names: frozenset[str]) -> str | None:
        """Return the sentence if the study has all its names; else None, as it is not for others.

        A value of any other type counts as a name that is unknown.
        """
        try:
            return self.template.format(**{key: _shown(v, names) for key, v in self.values.items()})
        except _NotForOthers:
            return None


class _NotForOthers(Exception):  # noqa: N818 - it ends inside this module
    """A value may not be told."""


def phrase(template: LiteralString, **values: Value) -> Sentence:
    """Return a sentence that may leave a site, without the full stop at its end."""
    return Sentence(template, values)


def _shown(value: Value, names: frozenset[str] | None) -> int | float | str:
    """Return a value as the template takes it; `names` are those that may be told, None all."""
    if type(value) is tuple:
        return ", ".join(str(_shown(name, names)) for name in value)
    if type(value) is Name and (names is None or value.text in names):
        return value.text
    if type(value) is Sentence:
        text = str(value) if names is None else value.told(names)
        if text is not None:
            return text
    if type(value) is Reason:
        return str(value)
    if type(value) is int or type(value) is float:
        return value
    raise _NotForOthers
