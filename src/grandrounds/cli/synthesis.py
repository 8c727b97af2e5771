"""What the command `synthesize` does: one contrast of one volume, or all that a cohort lacks."""

from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from rich.progress import Progress

from grandrounds.api.progress import plain_console
from grandrounds.cli.output import print_json
from grandrounds.core.errors import BadInput
from grandrounds.inference.missing import Filled, fill_missing
from grandrounds.inference.slices import Told
from grandrounds.inference.synthesize import SynthesisOptions, synthesize_volume
from grandrounds.inference.trained_model import load_trained_model
from grandrounds.inference.uncertainty import spread_kind
from grandrounds.tasks.synthesis.examples import ContrastPair


@dataclass(frozen=True)
class Asked:
    """What every use of the command has."""

    folder: Path
    site: str
    source: Path
    out: Path
    as_json: bool
    quiet: bool


def make(
    asked: Asked,
    contrasts: tuple[str, str],
    *,
    brain: Path | None,
    dicom: bool,
    uncertainty: Path | None,
    spread_by: str,
    anyway: bool,
) -> None:
    """Make one contrast, and say what must be known of it. Raises `BadInput`."""
    if not all(contrasts):
        raise BadInput("synthesize: say --from and --to, or --missing for all that a cohort lacks")
    kind = spread_kind(spread_by)
    options = SynthesisOptions(brain, uncertainty, kind, anyway, dicom)
    trained, pair = load_trained_model(asked.folder, asked.site), ContrastPair(*contrasts)
    with _slices(asked) as told:
        made = synthesize_volume(trained, pair, asked.source, asked.out, options, told)
    if asked.as_json:
        facts = {"path": str(made.path), "site": asked.site, "task": pair.label}
        print_json(facts | {"notes": made.notes, "sidecar": dict(made.sidecar)})
        return
    if not asked.quiet:
        print(f"synthetic {pair.target}: {made.path}")
        for note in made.notes:
            _say(note)


def fill(asked: Asked, *, anyway: bool, unused: Sequence[str]) -> None:
    """Make all that a cohort lacks, and show the table of it. Raises `BadInput`."""
    if unused:
        raise BadInput(
            f"--missing chooses sources and targets itself; leave out {', '.join(unused)}"
        )
    trained = load_trained_model(asked.folder, asked.site)
    with _slices(asked) as told:
        found = fill_missing(trained, asked.source, asked.out, anyway=anyway, told=told)
    if asked.as_json:
        print_json({"table": str(found.table), "rows": [dict(row) for row in found.rows]})
    elif not asked.quiet:
        _show(found)


def _show(found: Filled) -> None:
    for row in found.rows:
        name = "_".join(part for part in (row["patient"], row["session"], row["contrast"]) if part)
        why = f" ({row['reason']})" if row["reason"] else ""
        origin = f" from {row['source']}" if row["source"] else ""
        print(f"{name}{origin}: {row['state']}{why}")
    print(f"table: {found.table}")


def _say(note: str) -> None:
    plain_console(stderr=True).print(f"note: {note}", soft_wrap=True)


@contextmanager
def _slices(asked: Asked) -> Generator[Told, None, None]:
    """Show on a terminal how many slices are predicted."""
    console = plain_console(stderr=True)
    hidden = asked.quiet or asked.as_json or not console.is_terminal
    with Progress(console=console, transient=True, disable=hidden) as progress:
        bar = progress.add_task("slices")

        def told(done: int, total: int) -> None:
            progress.update(bar, completed=done, total=total)

        yield told
