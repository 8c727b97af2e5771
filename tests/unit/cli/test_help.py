"""The help of every command is, to the byte, what `help/` says.

A new command brings its text along: `grandrounds COMMAND --help` on a terminal of 100 columns.
"""

from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

import pytest
from typer.main import get_command
from typer.testing import CliRunner

from grandrounds.cli.app import app

TYPER = "0.29.2"  # the version that laid the texts out
STORED = Path(__file__).with_name("help")
TERMINAL = {"COLUMNS": "100", "NO_COLOR": "1", "TERM": "dumb"}


def words_of(command: object, words: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """The words that call a command, and those that call each command below it."""
    yield words
    for name, below in getattr(command, "commands", {}).items():
        yield from words_of(below, (*words, name))


COMMANDS = {"-".join(("grandrounds", *words)): words for words in words_of(get_command(app))}


def help_of(words: tuple[str, ...]) -> str:
    """What a command says of itself."""
    done = CliRunner(env=TERMINAL).invoke(app, [*words, "--help"], prog_name="grandrounds")
    assert done.exit_code == 0, done.output
    return done.output


def test_every_command_has_its_help_here_and_no_other_has():
    assert {path.name for path in STORED.iterdir()} == {f"{name}.txt" for name in COMMANDS}


@pytest.mark.parametrize("name", COMMANDS)
def test_the_help_of_a_command_is_the_same_as_ever(name: str):
    if version("typer") != TYPER:
        pytest.skip(f"help: laid out by typer {TYPER}; here is typer {version('typer')}")
    assert help_of(COMMANDS[name]) == (STORED / f"{name}.txt").read_text("utf-8")
