"""The command line has one function for each command, whose signature is its options."""

import signal
import sys

from grandrounds.cli import archive as archive
from grandrounds.cli import audit as audit
from grandrounds.cli import federation as federation
from grandrounds.cli import keys as keys
from grandrounds.cli import ledger as ledger
from grandrounds.cli import new as new
from grandrounds.cli import results as results
from grandrounds.cli import site as site
from grandrounds.cli import studies as studies
from grandrounds.cli import sweep as sweep
from grandrounds.cli.app import app
from grandrounds.core.errors import BadInput, GrandRoundsError


def main() -> None:
    """Run a command, and print an error as one sentence.

    Exit code 2: bad input; 1: the run failed or was stopped.
    """
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        app(prog_name="grandrounds")
    except GrandRoundsError as error:
        print(f"grandrounds: {error}", file=sys.stderr)
        sys.exit(2 if isinstance(error, BadInput) else 1)


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt
