"""A proposal holds a study's choices so far, each with its reason, and writes them as a file."""

import tomllib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from textwrap import wrap
from typing import Any, cast

import tomli_w

from grandrounds.core.errors import BadInput
from grandrounds.study.file import Table, apply_override, parse_study
from grandrounds.study.study import SiteSpec, Study

WIDTH = 96  # letters of a comment's line
AS_ASKED = "as asked"


@dataclass(frozen=True)
class Proposed:
    """One key of a study by its dotted path, what is proposed for it, and why."""

    key: str
    value: Any
    why: str


@dataclass(frozen=True)
class Proposal:
    """A study with the reason for each choice, and what was left out of it, by name.

    The `notes` may have names that are the sites' alone: they are shown, and never written.
    """

    study: Study
    choices: tuple[Proposed, ...]
    notes: tuple[str, ...]

    @property
    def text(self) -> str:
        """Return the study file, with a comment for each choice."""
        head = (
            f"# Proposed from the data of {number_of(len(self.study.site), 'site')}. Every choice"
        )
        lines = [f"{head} says why, and can be another one.", *_top(self.study)]
        for section, choices in _by_section(self.choices).items():
            lines += ["", f"[{section}]"] if section else []
            lines += [line for choice in choices for line in _lines(section, choice)]
        for site in self.study.site:
            lines += ["", "[[site]]", _entry("name", site.name), _entry("tasks", list(site.tasks))]
        return "\n".join(lines) + "\n"


def _top(study: Study) -> list[str]:
    return [_entry("name", study.name), _entry("seed", study.seed)]


def _by_section(choices: Sequence[Proposed]) -> dict[str, list[Proposed]]:
    found: dict[str, list[Proposed]] = {"": []}  # keys without a table stand before all tables
    for choice in choices:
        found.setdefault(choice.key.rpartition(".")[0], []).append(choice)
    return found


def _lines(section: str, choice: Proposed) -> list[str]:
    key = choice.key.removeprefix(f"{section}.") if section else choice.key
    return [*(f"# {line}" for line in wrap(choice.why, WIDTH)), _entry(key, choice.value)]


def _entry(key: str, value: object) -> str:
    return f"{key} = {_toml(value)}"


def _toml(value: object) -> str:
    match value:
        case dict():
            pairs = cast(dict[str, object], value).items()
            return "{ " + ", ".join(_entry(key, item) for key, item in pairs) + " }"
        case list() | tuple():
            return "[" + ", ".join(_toml(item) for item in cast(Sequence[object], value)) + "]"
        case _:
            return tomli_w.dumps({"value": value}).partition("=")[2].strip()


@dataclass
class Draft:
    """The choices so far; what is asked for takes the place of what would be proposed."""

    asked: Table
    choices: list[Proposed] = field(default_factory=list[Proposed])
    notes: list[str] = field(default_factory=list[str])

    def choose(self, key: str, value: Any, why: str) -> Any:
        """Add a choice, and return it or what is asked for in its place."""
        wanted = at_path(self.asked, key)
        chosen = Proposed(key, value, why) if wanted is None else Proposed(key, wanted, AS_ASKED)
        self.choices = [*(c for c in self.choices if c.key != key), chosen]
        return chosen.value

    def value(self, key: str) -> Any:
        """Return what is chosen for a key; None before anything is."""
        return next((choice.value for choice in self.choices if choice.key == key), None)

    def with_others(self, overrides: Sequence[str]) -> tuple[Proposed, ...]:
        """Return the choices, and what is asked for beside them."""
        found = list(self.choices)
        for override in overrides:
            key, table = override.partition("=")[0].strip(), cast(Table, {})
            apply_override(table, override)
            above = [key.rsplit(".", number)[0] for number in range(key.count(".") + 1)]
            if key not in ("name", "seed") and not any(c.key in above for c in found):
                found.append(Proposed(key, at_path(table, key), AS_ASKED))
        return tuple(found)

    def table(self, name: str, sites: Iterable[SiteSpec]) -> Table:
        """Return the study so far."""
        table: Table = {"name": name, "seed": 1}
        for choice in self.choices:
            *parents, last = choice.key.split(".")
            place = table
            for parent in parents:
                place = place.setdefault(parent, {})
            place[last] = choice.value
        return {**table, "site": [{"name": s.name, "tasks": list(s.tasks)} for s in sites]}


def at_path(table: Table, key: str) -> Any:
    """Return what a table has at a dotted path; None where it has nothing."""
    value: Any = table
    for part in key.split("."):
        if not isinstance(value, dict) or part not in value:
            return None
        value = cast(Table, value)[part]
    return value


def number_of(number: int, what: str) -> str:
    """Write a number of things: "1 site", "2 sites"."""
    return f"{number:,} {what}{'' if number == 1 else 's'}"


def check_reads_back(proposal: Proposal) -> None:
    """Assert that the file says the study that was checked."""
    read = parse_study(tomllib.loads(proposal.text))
    if read != proposal.study:
        raise BadInput("the proposal does not read back; give fewer --set, and edit the file")
