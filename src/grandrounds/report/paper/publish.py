"""A folder's material for a paper is written here: `figures/` and `tables/`."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from grandrounds.core.files import remove, write_bytes
from grandrounds.core.quoting import table_text
from grandrounds.core.run_folder import ResultFolder
from grandrounds.report.analysis.cross_site import cross_site_matrices
from grandrounds.report.analysis.facts import Facts, read_facts
from grandrounds.report.page.pictures import PanelChoice, choices
from grandrounds.report.paper.tables import (
    PaperRow,
    PaperRows,
    arms_table,
    cost_row,
    costs_table,
    pair_row,
    pairs_table,
    site_row,
    sites_table,
    standing_row,
)

SUFFIXES = (".svg", ".pdf", ".png")

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def publish(folder: Path, *, figures: bool = True, include_images: bool = False) -> list[Path]:
    """Write the tables and, unless unwanted, the figures of a folder, and return the files.

    The same folder gives the same bytes. Of sites with real patients images are drawn only with
    `include_images`. A figure that the folder no longer supports is removed. Raises `BadFolder`
    or `DiskFailed`.
    """
    facts = read_facts(folder)
    files = {f"{ResultFolder.tables}/{name}": data for name, data in tables(facts).items()}
    if figures:
        found = _figures(facts, include_images=include_images)
        files |= {f"{ResultFolder.figures}/{name}": data for name, data in found.items()}
    for name, data in files.items():
        _write(folder / name, data)
    return [folder / name for name, data in files.items() if data]


def tables(facts: Facts) -> dict[str, bytes]:
    """Return the tables by file name; empty before there are scores."""
    rows = PaperRows(facts)
    texts = {
        "arms.csv": _csv(standing_row(row) for row in rows.standings),
        "sites.csv": _csv(site_row(row) for row in rows.sites),
        "pairs.csv": _csv(pair_row(row) for row in rows.pairs),
        "arms.tex": arms_table(rows),
        "sites.tex": sites_table(rows),
        "pairs.tex": pairs_table(rows),
        "costs.csv": _csv(cost_row(arm) for arm in rows.costs),
        "costs.tex": costs_table(rows),
    }
    return {name: text.encode() for name, text in texts.items()}


def _csv(rows: Iterable[PaperRow]) -> str:
    found = list(rows)
    return table_text(list(found[0]), found) if found else ""


def _figures(facts: Facts, *, include_images: bool) -> dict[str, bytes]:
    from grandrounds.report.paper.style import as_files, house_style

    files: dict[str, bytes] = {}
    with house_style():
        for name, figure in _drawn(facts, include_images=include_images).items():
            written = as_files(figure) if figure else dict.fromkeys(SUFFIXES, b"")
            files |= {f"{name}{suffix}": data for suffix, data in written.items()}
    return files


def _drawn(facts: Facts, *, include_images: bool) -> Mapping[str, "Figure | None"]:
    from grandrounds.report.paper.figures import (
        curves_figure,
        gains_figure,
        matrix_figure,
        overall_figure,
        panels_figure,
    )

    own = next((c for c in cross_site_matrices(facts) if c.arm is facts.main_arm), None)
    return {
        "gains": gains_figure(facts),
        "overall": overall_figure(facts),
        "curves": curves_figure(facts),
        "matrix": matrix_figure(own) if own else None,
        "panels": panels_figure(facts, typical(facts, include_images=include_images)),
    }


def typical(facts: Facts, *, include_images: bool) -> list[PanelChoice]:
    """Choose the median patient of each site's first task, where its images may be shown."""
    found: dict[str, PanelChoice] = {}
    for choice in choices(facts, include_images=include_images):
        found.setdefault(choice.site, choice)
    return list(found.values())


def _write(path: Path, data: bytes) -> None:
    """Write a file whole or not at all; without data, remove it."""
    refusal = "{path}: cannot be written: {reason}"
    if data:
        write_bytes(path, data, refusal=refusal)
    else:
        remove(path, refusal=refusal)
