"""Paths and names are data: brackets are no markup, and colons no emoji, whatever prints them."""

import ast
import io
from collections.abc import Callable
from pathlib import Path

import pytest
from rich.console import Console
from rich.table import Table

import grandrounds
from grandrounds.api.progress import ProgressBars, plain_console, warn
from grandrounds.cli.federation_output import (
    print_findings,
    print_jobs,
    print_leftovers,
    print_revoked,
)
from grandrounds.cli.output import print_adaptation, print_line, print_means, print_patients
from grandrounds.cli.study_output import (
    print_acceptances,
    print_requests,
    print_site,
)
from grandrounds.cli.study_output import (
    print_patients as print_dealt,
)
from grandrounds.cli.tables import print_table
from grandrounds.core.events import SiteTrained
from grandrounds.core.ledger import LedgerEntry, LedgerLine
from grandrounds.core.sentence import Name, phrase
from grandrounds.data.availability import Count, SiteSummary
from grandrounds.flare.retention import Leftover
from grandrounds.study.acceptance import Acceptance

ODD = "[red]a[/red] [1] [/] :b:"
ONE = Count(1, 1, 1)
SUMMARY = SiteSummary(
    ODD,
    simulated=False,
    splits={"train": ONE, "validation": ONE, "test": ONE},
    contents={ODD: ONE},
    tasks={},
    geometry=None,
    notes=(phrase("without a row: {ids}", ids=(Name(ODD),)),),
)
GONE = Leftover(ODD, ODD, 1, 1.0, ODD)


def _columns() -> None:
    table = Table(ODD, title=ODD)
    table.add_row(ODD)
    print_table(table)


@pytest.mark.parametrize(
    ("show", "times"),
    [
        (lambda: print_site(SUMMARY), 3),
        (lambda: print_leftovers([GONE], [], dry_run=True, as_json=False), 3),
        (lambda: print_revoked(1, Path(ODD), Path(ODD)), 2),
        (lambda: print_findings({ODD: {"verdict": "bad", "found": ODD, "mend": ODD}}), 3),
        (lambda: print_jobs([ODD], [(ODD, ODD, ODD, ODD, ODD)]), 6),
        (lambda: print_acceptances([Acceptance("a", ODD[:16], ODD, "", policy=(ODD,))]), 2),
        (lambda: print_requests([LedgerLine(1, 0.0, LedgerEntry(ODD, ODD, refused=ODD))]), 3),
        (lambda: print_dealt(ODD, {ODD: {ODD: 1}}), 3),
        (lambda: print_means({ODD: {ODD: {ODD: 1.0}}}, metric=ODD, title=ODD), 4),
        (lambda: print_adaptation(ODD, {ODD: 1}, {ODD: {ODD: 1.0}}), 3),
        (lambda: print_patients({ODD: ODD}), 2),
        (lambda: print_line(ODD, ODD, as_json=False), 2),
        (lambda: plain_console().print(ODD, style="yellow"), 1),
        (lambda: warn(ODD), 1),
        (_columns, 3),
    ],
)
def test_what_is_printed_is_printed_as_it_is(
    show: Callable[[], None],
    times: int,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    monkeypatch.setenv("COLUMNS", "200")
    show()
    said = capsys.readouterr()
    assert (said.out + said.err).count(ODD) == times


def test_the_bars_of_a_run_show_titles_and_sites_as_they_are():
    file = io.StringIO()
    with ProgressBars(plain_console(file=file, width=200)) as bars:
        bars.prepare(ODD, 0, 2)
        bars.add("arm", ODD, 3)
        bars.show("arm", SiteTrained(1, ODD, 0.1, 8, 2, 0, 0))
    said = file.getvalue()
    assert f"preparing patients of {ODD}" in said
    assert f"{ODD} \u2501" in said
    assert f"{ODD} trained" in said


def test_every_console_of_the_program_is_a_plain_one():
    """A console of another kind reads markup; of ours one prints, and one draws for a notebook."""
    house, plain = Path(grandrounds.__file__).parent, {"markup", "emoji", "highlight"}
    made = (house / "api" / "progress.py", house / "api" / "notebook.py")
    for path in sorted(house.rglob("*.py")):
        calls = [
            node
            for node in ast.walk(ast.parse(path.read_text("utf-8")))
            if isinstance(node, ast.Call)
            and isinstance(node.func, ast.Name)
            and node.func.id == Console.__name__
        ]
        assert len(calls) == (path in made), path
        for call in calls:
            off = {
                keyword.arg
                for keyword in call.keywords
                if isinstance(keyword.value, ast.Constant) and keyword.value.value is False
            }
            assert plain <= off, path
