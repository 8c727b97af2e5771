"""A site file gives the location of a site's data; it never leaves the site."""

import os
import re
import tomllib
from collections.abc import Container, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeAlias

from grandrounds.core.errors import BadSite, BadStudy, require
from grandrounds.core.names import check_site_name
from grandrounds.core.sentence import Reason, phrase
from grandrounds.data.archive.settings import Archive, placed
from grandrounds.data.dataset import PatientDataset
from grandrounds.data.preparation.settings import Preparation
from grandrounds.privacy.budget import PrivacyLimit
from grandrounds.study.file import in_words, parse_table, read_toml_text
from grandrounds.study.study import Study

_ESCAPES = re.compile(r"hex value|escape|Unescaped|backslash", re.IGNORECASE)


@dataclass(frozen=True)
class SiteFile:
    """The location of a real site's data and of its cache of prepared slices.

    `data` is a folder of NIfTI volumes, an image stack (.npz) or a table of patients (.tsv, .csv,
    or a folder with participants.tsv), `cache` a folder that may be filled; relative paths start at
    the site file. `include_images` allows pictures of test cases in the report, `reveal_failures`
    whole messages in failure cards, with paths and names of patients. `tasks` are those of a site
    that is not in the study. `archive` tells from where `grandrounds site ingest` gets volumes, and
    `prepare` how volumes of another folder become those of `data`. `privacy` limits what all runs
    together may reveal of the data.
    """

    name: str
    data: Path
    cache: Path | None = None
    include_images: bool = False
    reveal_failures: bool = False
    tasks: tuple[str, ...] = ()
    archive: Archive | None = None
    prepare: Preparation | None = None
    privacy: PrivacyLimit | None = None


@dataclass(frozen=True)
class SiteDataset:
    """A real site's data as a dataset of this process, beside `SiteFile` for those in files.

    Only a task of one's own reads it; a run in this process needs no more.
    """

    name: str
    dataset: PatientDataset
    include_images: bool = False
    reveal_failures: bool = False
    tasks: tuple[str, ...] = ()


SiteSource: TypeAlias = SiteFile | SiteDataset


def read_site(path: Path) -> SiteFile:
    """Read a site file. Raises `BadSite`."""
    try:
        site = parse_table(SiteFile, tomllib.loads(read_toml_text(path)))
        check_site_name(site.name)
        folder = path.absolute().parent
        archive = placed(site.archive, folder) if site.archive else None
        privacy = _limit(site.privacy, folder) if site.privacy else None
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise BadSite(
            f"{path}: cannot be read as a site file ({_problem(error)})",
            safe=phrase("its site file cannot be read ({why})", why=Reason.of(error))
            if isinstance(error, OSError)
            else phrase("its site file is not valid TOML"),
        ) from None
    except BadStudy as error:
        raise BadSite(
            f"{path}: {error}", safe=phrase("a key of its site file is wrong or unknown")
        ) from None
    cache = folder / site.cache.expanduser() if site.cache else None
    prepare = _with_source(site.prepare, folder, archive, path) if site.prepare else None
    data = folder / site.data.expanduser()
    return replace(site, data=data, cache=cache, archive=archive, prepare=prepare, privacy=privacy)


def _limit(limit: PrivacyLimit, folder: Path) -> PrivacyLimit:
    """Return a checked limit, whose folder starts at the site file's. Raises `BadStudy`."""
    require(
        limit.epsilon > 0,
        f"privacy.epsilon is {limit.epsilon:g}; it must be above 0, for example 8",
    )
    require(
        0 < limit.delta < 1,
        f"privacy.delta is {limit.delta:g}; it must be above 0 and below 1, for example 1e-5",
    )
    return replace(limit, folder=limit.folder and folder / limit.folder.expanduser())


def _with_source(
    prepare: Preparation, folder: Path, archive: Archive | None, path: Path
) -> Preparation:
    """Return what to prepare, from where: the archive's volumes unless a folder is named."""
    if prepare.source != Path():
        return replace(prepare, source=folder / prepare.source.expanduser())
    if archive is None:
        raise BadSite(
            f"{path}: prepare.source is missing: name the folder of the volumes to prepare, or add "
            "[archive], whose volumes they then are",
            safe=phrase("its site file does not say which volumes to prepare"),
        )
    return replace(prepare, source=archive.volumes)


def _problem(error: OSError | ValueError) -> str:
    """Return what is wrong in words; a backslash is most often a path of Windows."""
    if isinstance(error, tomllib.TOMLDecodeError) and _ESCAPES.search(str(error)):
        return (
            f"{error}: in double quotes a backslash begins an escape; write a path of Windows "
            "in single quotes, 'C:\\data'"
        )
    return in_words(error)


def match_site_files(
    study: Study, files: Sequence[SiteSource], only: Container[str] | None = None
) -> dict[str, SiteSource]:
    """Return the file of each real site of the study, or of `only` these sites.

    Raises `BadSite` unless they match one to one.
    """
    names = [file.name for file in files]
    known = ", ".join(study.roster)
    for name in names:
        if name not in study.roster:
            raise BadSite(
                f"site file of '{name}': the study has no such site; it has {known}",
                safe=phrase("its site file names another site than this one"),
            )
        if names.count(name) > 1:
            raise BadSite(f"site '{name}' has {names.count(name)} site files; give one")
    for spec in study.site:
        wanted = only is None or spec.name in only
        if wanted and spec.data == "files" and spec.name not in names:
            raise BadSite(
                f"site '{spec.name}' needs its site file: add --site PATH_OF_ITS.toml",
                safe=phrase("it has no site file; one must lie in the local folder of its kit"),
            )
        if spec.data == "simulated" and spec.name in names:
            raise BadSite(
                f"site '{spec.name}' is simulated in this study; it takes no site file",
                safe=phrase("it is simulated in this study, and takes no site file"),
            )
    _check_tasks(files)
    return {file.name: file for file in files}


def _check_tasks(files: Sequence[SiteSource]) -> None:
    for file in files:
        if file.tasks:
            raise BadSite(
                f"site file of '{file.name}': tasks would do nothing: the study gives the site its "
                "tasks",
                safe=phrase("its site file has tasks, which the study gives it"),
            )


def default_cache() -> Path:
    """Return the cache for sites whose file names none (GRANDROUNDS_CACHE overrides it)."""
    chosen = os.environ.get("GRANDROUNDS_CACHE")
    return Path(chosen) if chosen else Path.home() / ".cache" / "grandrounds"
