"""`[archive]` of a site file says where a site's images come from, and where its volumes go."""

import base64
import os
from dataclasses import dataclass, field, replace
from datetime import date
from ipaddress import ip_address
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

from grandrounds.core.errors import BadSite, require
from grandrounds.data.dicom.contrast import ContrastRule
from grandrounds.data.session_files import is_outline

LARGEST_SECRET = 1 << 16  # bytes of a token's file
LARGEST_LIST = 1 << 26  # bytes of a list of patients


@dataclass(frozen=True)
class ArchiveQuery:
    """What is taken from a PACS; without a word everything of the modality is.

    In `body_part` and `description` (of the study or of the series) `*` and `?` stand for any text.
    `patients` are patient IDs, in the file one a line.
    """

    modality: str = "MR"
    body_part: str = ""
    description: str = ""
    since: date | None = None
    until: date | None = None
    patients: tuple[str, ...] = ()
    patients_file: Path | None = None


@dataclass(frozen=True)
class Access:
    """How the PACS lets this site in, and how patient this site is with it.

    A secret stands in an environment variable or a file, never in the site file: a token (Bearer),
    or USER:PASSWORD (Basic). `timeout` is in seconds; a request that failed for now is repeated
    `retries` times, at first after `pause` seconds, then after twice as long each time.
    """

    token_variable: str | None = None
    token_file: Path | None = None
    token_kind: Literal["Bearer", "Basic"] = "Bearer"
    certificate: Path | None = None
    key: Path | None = None
    authority: Path | None = None
    timeout: float = 30.0
    retries: int = 4
    pause: float = 1.0

    def authorization(self) -> str | None:
        """Return the value of the header that lets this site in. Raises `BadSite`."""
        if self.token_variable:
            secret = os.environ.get(self.token_variable, "").strip()
            where = f"the environment variable {self.token_variable}"
        elif self.token_file:
            secret, where = _text(self.token_file, LARGEST_SECRET).strip(), str(self.token_file)
        else:
            return None
        if not secret or not secret.isascii() or not secret.isprintable():
            raise BadSite(f"archive.access: {where} holds no token; it must be one line of ASCII")
        if self.token_kind == "Basic":
            secret = base64.b64encode(secret.encode()).decode()
        return f"{self.token_kind} {secret}"


@dataclass(frozen=True)
class Archive:
    """Where a site's images are (`folder` or the `url` of DICOMweb), and where its volumes go.

    `private` is the site's own folder (mode 700) of the table of states, the key of the pseudonyms
    and what is being fetched; left out, it lies beside `volumes` as VOLUMES-private. `identified`
    allows files that name a patient; `keep_fetched` keeps what a PACS sent after it was converted.
    `contrast` are rules for series whose contrast is not recognised, or not as it should be.
    """

    volumes: Path
    folder: Path | None = None
    url: str | None = None
    private: Path | None = None
    identified: bool = False
    keep_fetched: bool = False
    contrast: tuple[ContrastRule, ...] = ()
    query: ArchiveQuery = field(default_factory=ArchiveQuery)
    access: Access = field(default_factory=Access)

    @property
    def private_folder(self) -> Path:
        return self.private or self.volumes.with_name(f"{self.volumes.name}-private")

    @property
    def table(self) -> Path:
        return self.private_folder / "cases.sqlite"

    @property
    def key_file(self) -> Path:
        return self.private_folder / "pseudonyms.key"


def placed(archive: Archive, folder: Path) -> Archive:
    """Return the settings with paths that start at the site file's folder. Raises `BadStudy`."""
    _check(archive)
    query, access = archive.query, archive.access
    found = replace(
        archive,
        volumes=_at(folder, archive.volumes),
        folder=_at(folder, archive.folder) if archive.folder else None,
        private=_at(folder, archive.private) if archive.private else None,
        query=replace(query, patients_file=_maybe(folder, query.patients_file)),
        access=replace(
            access,
            token_file=_maybe(folder, access.token_file),
            certificate=_maybe(folder, access.certificate),
            key=_maybe(folder, access.key),
            authority=_maybe(folder, access.authority),
        ),
    )
    _check_apart(found)
    return found


def _at(folder: Path, path: Path) -> Path:
    return Path(os.path.normpath(folder / path.expanduser()))


def _maybe(folder: Path, path: Path | None) -> Path | None:
    return _at(folder, path) if path else None


def _check(archive: Archive) -> None:
    require(
        (archive.folder is None) != (archive.url is None),
        'archive needs one of folder = "..." and url = "https://..."',
    )
    require(
        archive.folder is None or (archive.query, archive.access) == (ArchiveQuery(), Access()),
        "archive.query and archive.access are for a PACS: a folder is taken whole",
    )
    for rule in archive.contrast:
        require(
            rule.contrast.isascii() and rule.contrast.isalnum() and not is_outline(rule.contrast),
            f"archive.contrast names a contrast {rule.contrast!a}; it must have letters and "
            "digits alone, such as T1w",
        )
    if archive.url is not None:
        _check_url(archive.url, archive.access)
    access, query = archive.access, archive.query
    require(
        not (access.token_variable and access.token_file),
        "archive.access has token_variable and token_file; give one",
    )
    require(
        access.key is None or access.certificate is not None,
        "archive.access.key needs the certificate that belongs to it",
    )
    require(access.timeout > 0, f"archive.access.timeout is {access.timeout:g}; it must be above 0")
    require(0 <= access.retries <= 20, "archive.access.retries must be from 0 to 20")
    require(0 <= access.pause <= 600, "archive.access.pause must be from 0 to 600 seconds")
    require(
        not (query.since and query.until) or query.since <= query.until,
        "archive.query.since is after archive.query.until",
    )


def _check_url(url: str, access: Access) -> None:
    try:
        parts = urlsplit(url)
        _ = parts.port
    except ValueError:
        parts = urlsplit("")
    require(
        parts.scheme in ("http", "https") and bool(parts.hostname) and not parts.query,
        'archive.url must be the address of DICOMweb, for example "https://pacs/dicom-web"',
    )
    require(
        parts.username is None and parts.password is None,
        "archive.url has a user in it; a secret stands in archive.access.token_file",
    )
    secret = access.token_variable or access.token_file
    require(
        parts.scheme == "https" or not secret or _is_here(parts.hostname or ""),
        "archive.url is http, and the token would cross the network in the clear: use https",
    )


def _is_here(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _check_apart(archive: Archive) -> None:
    """Refuse folders that lie in each other: private files are not for who reads the volumes."""
    named = {"volumes": archive.volumes, "private": archive.private_folder}
    if archive.folder:
        named["folder"] = archive.folder
    for name, path in named.items():
        for other, above in named.items():
            require(
                name == other or not path.is_relative_to(above),
                f"archive.{name} lies in archive.{other}; they must be apart",
            )


def patients_of(query: ArchiveQuery) -> tuple[str, ...]:
    """Return the patient IDs that are asked for; none means all. Raises `BadSite`."""
    listed: list[str] = []
    if query.patients_file:
        lines = _text(query.patients_file, LARGEST_LIST).splitlines()
        listed = [line.strip() for line in lines if line.strip()]
        if not listed:
            raise BadSite(f"{query.patients_file}: lists no patient; it must have one ID a line")
    return tuple(dict.fromkeys([*query.patients, *listed]))


def _text(path: Path, largest: int) -> str:
    try:
        with path.open("rb") as file:
            found = file.read(largest + 1)
    except OSError as error:
        raise BadSite(f"{path}: {error.strerror}; the site file names it") from None
    try:
        text = found.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise BadSite(f"{path}: is not in UTF-8; it must be text") from None
    if len(found) > largest:
        raise BadSite(f"{path}: has more than {largest} bytes; is it the right file?")
    return text
