"""The ledgers of a run: each site's, and the coordinator's of what it received."""

from collections.abc import Iterable
from pathlib import Path

from grandrounds import __version__
from grandrounds.core.ledger import COORDINATOR, SITES_HERE
from grandrounds.core.run_folder import RunFolder
from grandrounds.engines.envelope import Identity
from grandrounds.site.ledger import Ledger, Recorder
from grandrounds.study.file import fingerprint
from grandrounds.study.study import Study


def site_ledger(study: Study, folder: Path, site: str, identity: Identity | None = None) -> Ledger:
    """Return the ledger of a run in `folder` at one site, signed where the site has a key."""
    return Ledger(
        RunFolder(folder).site(site).ledger,
        party=site,
        study=fingerprint(study),
        key=identity.key if identity else None,
        guards=_protections(study),
        about={"run": folder.name, "version": __version__},
    )


def _protections(study: Study) -> tuple[str, ...]:
    """Return what protects an update of a study; noise on gradients is no guard, and counts."""
    guards = tuple(guard.word for guard in study.build_method().guards.steps)
    return ('privacy.kind = "record"', *guards) if study.privacy.kind == "record" else guards


def ledgers_here(study: Study, folder: Path, sites: Iterable[str]) -> dict[str, Recorder]:
    """Return the ledgers of sites that answer in the coordinator's own process, unsigned.

    They prove nothing against who runs all of them, and show what a hospital would record.
    """
    return {name: site_ledger(study, folder, name) for name in sites}


def coordinator_ledger(study: Study, folder: Path, identity: Identity | None = None) -> Ledger:
    """Return the coordinator's ledger; without an `identity` the sites are on this machine."""
    where = {} if identity else {"sites": SITES_HERE}
    return Ledger(
        RunFolder(folder).ledger,
        party=(identity.name if identity else "") or COORDINATOR,
        study=fingerprint(study),
        key=identity.key if identity else None,
        private=False,
        guards=_protections(study),
        about={"run": folder.name, "version": __version__} | where,
    )
