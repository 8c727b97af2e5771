"""Sites' statistics are printed here side by side, or written as a page."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from rich.table import Table
from rich.text import Text

from grandrounds.api.progress import plain_console
from grandrounds.cli.tables import print_table
from grandrounds.core.errors import require
from grandrounds.core.site_statistics import EVERYONE_HERE, SiteStatistics
from grandrounds.report.analysis.consortium import Consortium, distribution_rows, unmet_rows
from grandrounds.report.page.consortium import write_consortium
from grandrounds.runs.survey import SurveyedSite
from grandrounds.study.file import fingerprint
from grandrounds.study.study import Study


def consortium_of(study: Study, sites: Sequence[SiteStatistics]) -> Consortium:
    """Return sites' statistics as tables and pages read them."""
    elements = study.elements
    return Consortium(
        study.name,
        fingerprint(study),
        elements.least,
        tuple(sites),
        study.roster,
        elements.minimum or {},
    )


def consortium_as_json(found: Consortium) -> dict[str, object]:
    """Return sites' statistics, scores and what would help, as JSON."""
    return {
        "study": found.study,
        "floor": found.floor,
        "sites": [asdict(site) for site in found.sites],
        "scores": [asdict(score) | {"score": score.score} for score in found.scores],
        "help": [{"site": site, "sentence": sentence} for site, sentence in found.help],
    }


def print_consortium(found: Consortium) -> None:
    """Print what every site tells of its people, how alike they are, and what would help."""
    console = plain_console()
    names = [site.site for site in found.sites]
    counts = Table("patients with", *names, "all, at least", title="What leaves: counts")
    for group in found.told_groups():
        row = [
            (str(number) if number else found.fewer) if found.asks(site, group) else ""
            for site, number in zip(found.sites, found.row(group), strict=True)
        ]
        label = "anything of the study" if group == EVERYONE_HERE else group
        counts.add_row(label, *row, str(found.total(group)))
    print_table(counts, console)
    table = Table("", "of", *names, title="What leaves: distributions, from the 5 to the 95 %")
    rows = [*unmet_rows(found), *distribution_rows(found)]
    for each in (row for row in rows if any(row.texts)):
        table.add_row(each.label, each.group, *each.texts)
    if table.row_count:
        print_table(table, console)
    for score in found.scores:
        known = "not known" if score.score is None else f"{score.score:.0f} of 100"
        console.print(Text(f"{score.site}: compatibility {known}"), soft_wrap=True)
    for site, sentence in found.help:
        console.print(Text(f"{site}: {sentence}"), soft_wrap=True)


def print_surveyed(surveyed: Sequence[SurveyedSite], found: Consortium) -> None:
    """Print what sites whose data lie here do not meet, to the patient, and what would leave."""
    console = plain_console()
    for site in surveyed:
        for note in site.notes:
            console.print(Text(f"{site.spec.name}: {note}"), soft_wrap=True)
    if surveyed:
        print_consortium(found)


def write_page(found: Consortium, page: Path | None) -> None:
    """Write the consortium's page, if one is wanted. Raises `BadStudy` and `DiskFailed`."""
    if page:
        require(bool(found.sites), f"--page {page}: no site is there; add --site SITE.toml")
        write_consortium(found, page)
