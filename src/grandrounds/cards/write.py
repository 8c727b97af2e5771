"""Writing the model card and the data sheet as Markdown."""

from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from grandrounds.cards.facts import Facts, totals
from grandrounds.cards.folder import read_chosen
from grandrounds.cards.limits import limits
from grandrounds.cards.scores import spread, written
from grandrounds.errors import DiskFailed

BLANK = "to be completed by the site"
CARDS = ("model-card.md", "data-sheet.md")


def write_cards(folder: Path, *, out: Path | None, arm: str | None, seed: int | None) -> list[Path]:
    """Write `model-card.md` and `data-sheet.md` of a finished run, and give their paths.

    Raises `BadInput`, `BadFolder` or `DiskFailed`.
    """
    facts = Facts(read_chosen(folder, arm=arm, seed=seed))
    target = out or folder / "card"
    return [_write(target / name, render(facts, name)) for name in CARDS]


def render(facts: Facts, name: str) -> str:
    """Fill one of `CARDS`."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        undefined=StrictUndefined,
        autoescape=False,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    template = environment.get_template(f"{name}.j2")
    return template.render(
        facts=facts,
        limits=limits(facts),
        written=written,
        spread=spread,
        totals=totals,
        blank=f"*{BLANK}*",
    )


def _write(path: Path, text: str) -> Path:
    partial = path.with_name(f"{path.name}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial.write_text(text, "utf-8")
        partial.replace(path)
    except OSError as error:
        raise DiskFailed(f"{path}: the card cannot be written: {error.strerror}") from error
    return path
