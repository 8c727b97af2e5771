"""Which sites of a run are audited: simulated ones by name, real ones by their site files."""

from collections.abc import Sequence
from pathlib import Path

from grandrounds.core.errors import BadSite
from grandrounds.runs.folder import TrainedRun
from grandrounds.study.site_file import SiteFile, read_site


def sites_asked(
    run: TrainedRun, names: Sequence[str], paths: Sequence[Path]
) -> dict[str, SiteFile | None]:
    """Map each site to audit to its site file, None for a simulated one.

    Without names and files they are all simulated sites that trained. Raises `BadSite`.
    """
    kinds = {spec.name: spec.data for spec in run.study.site if spec.name in run.study.trainers}
    files = {file.name: file for file in map(read_site, paths)}
    known = ", ".join(kinds)
    for name in (*names, *files):
        if name not in kinds:
            raise BadSite(f"{run.folder}: no site '{name}' trained; those that did are {known}")
    for name in names:
        if kinds[name] == "files" and name not in files:
            raise BadSite(f"site '{name}' is a real one; give its site file: --site-file SITE.toml")
    chosen = [*names, *files] or [name for name, kind in kinds.items() if kind == "simulated"]
    if not chosen:
        raise BadSite(
            f"{run.folder}: has no simulated site, and an audit needs a site's data; give its site "
            "file: --site-file SITE.toml"
        )
    return {name: files.get(name) for name in chosen}
