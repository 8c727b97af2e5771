"""A site's volumes are prepared as its site file says, and a page shows how well."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from grandrounds.core.errors import BadSite
from grandrounds.core.serialization import from_plain
from grandrounds.data.preparation.cohort import Outcome, SessionState, prepare_folder
from grandrounds.data.preparation.quality import ContrastQuality, SessionQuality
from grandrounds.data.preparation.store import QUALITY_PAGE
from grandrounds.report.page.preparation import (
    PreparedContrast,
    PreparedSession,
    write_quality_page,
)
from grandrounds.study.site_file import SiteFile


@dataclass(frozen=True)
class SitePreparation:
    """What became of a site's sessions; `look` should be looked at on the page."""

    outcomes: tuple[Outcome, ...]
    removed: int
    look: int
    page: Path

    def count(self, *states: SessionState) -> int:
        """Return how many sessions ended so."""
        return sum(outcome.state in states for outcome in self.outcomes)


def prepare_site(
    site: SiteFile, *, workers: int = 0, told: Callable[[int, int], None]
) -> SitePreparation:
    """Prepare a site's volumes and write its quality page. Raises `BadSite` and `DiskFailed`."""
    if site.prepare is None:
        raise BadSite(
            f"the site file of '{site.name}' has no table [prepare]; it must have one with the "
            'folder of the volumes to prepare: source = "FOLDER".'
        )
    outcomes, removed = prepare_folder(site.prepare, site.data, workers=workers, told=told)
    sessions = [_session(each.session, each.quality) for each in outcomes if each.quality]
    refused = {each.session: each.reason for each in outcomes if each.reason}
    page = site.data / QUALITY_PAGE
    look = write_quality_page(page, site.name, sessions, refused)
    return SitePreparation(tuple(outcomes), removed, look, page)


def _session(name: str, plain: Mapping[str, Any]) -> PreparedSession:
    quality = from_plain(SessionQuality, plain)
    contrasts = (_contrast(each, found) for each, found in quality.contrasts.items())
    return PreparedSession(
        name,
        quality.reference,
        quality.spacing,
        tuple(contrasts),
        quality.brain,
        quality.brain_is_own,
        quality.alone,
    )


def _contrast(name: str, found: ContrastQuality) -> PreparedContrast:
    return PreparedContrast(
        name, found.spacing, found.information, found.overlap, found.shift, found.pictures
    )
