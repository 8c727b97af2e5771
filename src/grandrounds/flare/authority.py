"""A federation's authority issues certificates and revokes them; its folder stays offline."""

# NVFlare has no type stubs.
# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false
# pyright: reportUnknownVariableType=false, reportUnknownArgumentType=false

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from pathlib import Path
from typing import Any, TypeVar, cast

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.rsa import (
    RSAPrivateKey,
    RSAPublicKey,
    generate_private_key,
)
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)
from nvflare.lighter.utils import Identity as Subject
from nvflare.lighter.utils import generate_cert

from grandrounds.core.errors import BadSite, BadStudy, WrongSignature
from grandrounds.core.files import write_bytes, write_text
from grandrounds.core.serialization import from_plain
from grandrounds.study.identity import check_dates, load_key, read_certificate
from grandrounds.study.revocation import REVOKED, RevocationList, read_list, sign_list

AUTHORITY = "authority"  # beside the kits: the folder of the key that all others depend on
ROOT = "rootCA.pem"
KEY_BITS, EXPONENT = 2048, 65537
ROOT_DAYS, PARTY_DAYS = 365 * 2, 360
_Content = TypeVar("_Content")
_KEY, _SETTINGS, _REGISTER = "rootCA.key", "settings.json", "register.json"


@dataclass(frozen=True)
class Settings:
    """What every kit of a federation says: the study's name, the server's address and the admin."""

    study: str
    server: str
    port: int


@dataclass(frozen=True)
class Issued:
    """A certificate of a federation: its serial number, its name, whose it is, its key and dates.

    `key` is the SHA-256 of the public key.
    """

    serial: str
    name: str
    owner: str
    key: str
    begins: str
    ends: str


@dataclass(frozen=True)
class Authority:
    """The folder of an authority: its key, its certificate and the register of what it issued."""

    folder: Path

    @property
    def root(self) -> Path:
        """Return the path of the authority's own certificate."""
        return self.folder / ROOT

    @property
    def revoked(self) -> Path:
        """Return the path of the newest list of revoked certificates; it may not exist yet."""
        return self.folder / REVOKED

    @property
    def settings(self) -> Settings:
        """Return what every kit says. Raises `BadSite`."""
        return self._read(_SETTINGS, lambda found: from_plain(Settings, found))

    @property
    def register(self) -> Sequence[Issued]:
        """Return all certificates that were issued, the oldest first. Raises `BadSite`."""
        return self._read(_REGISTER, lambda found: [from_plain(Issued, each) for each in found])

    def issue(
        self, name: str, owner: str, key: RSAPublicKey, *, organisation: str, role: str = ""
    ) -> bytes:
        """Return a new certificate (PEM), which is in the register before anyone has it.

        `owner` is the party that it belongs to; a `role` lets NVFlare take its owner for a user.
        Raises `BadSite` where the authority's own certificate has ended.
        """
        own, now = read_certificate(self.root), datetime.now(UTC)
        try:
            check_dates(own)
        except WrongSignature as error:
            raise BadSite(f"{self.root}: {error}; provision the federation anew") from None
        certificate = generate_cert(
            Subject(name, organisation, role),
            Subject(self.settings.study),
            load_key(self._key),
            key,
            not_valid_before=now,
            not_valid_after=min(now + timedelta(PARTY_DAYS), own.not_valid_after_utc),
            server_default_host=self.settings.server if owner == "server" else None,
        )
        self._write([*self.register, issued_as(certificate, name, owner)])
        return certificate.public_bytes(Encoding.PEM)

    def revoke(self, serials: Iterable[str]) -> RevocationList:
        """Revoke certificates for good, and return the new list, which `revoked` holds."""
        known = self.list
        gone = known.serials | {int(serial, 16) for serial in serials}
        news = RevocationList(known.number + 1, gone)
        root, now = read_certificate(self.root), datetime.now(UTC)
        write_bytes(self.revoked, sign_list(news, load_key(self._key), root, now))
        return news

    @property
    def list(self) -> RevocationList:
        """Return what was revoked so far. Raises `BadSite`."""
        try:
            pem = self.revoked.read_bytes() if self.revoked.exists() else b""
            return read_list(pem, self.root.read_bytes())
        except (OSError, WrongSignature) as error:
            raise self._no_authority(REVOKED, error) from None

    def of(self, owner: str) -> Sequence[Issued]:
        """Return a party's certificates that are not revoked. Raises `BadStudy` for a stranger."""
        found, revoked = [e for e in self.register if e.owner == owner], self.list.serials
        if not found:
            known = ", ".join(self.owners)
            raise BadStudy(f"{self.folder}: issued nothing to '{owner}'; it knows {known}")
        return [each for each in found if int(each.serial, 16) not in revoked]

    @property
    def owners(self) -> Sequence[str]:
        """Return all parties that have or had a certificate, in the order of the first."""
        return tuple(dict.fromkeys(each.owner for each in self.register))

    @property
    def _key(self) -> Path:
        return self.folder / _KEY

    def _read(self, name: str, read: Callable[[Any], _Content]) -> _Content:
        try:
            return read(json.loads((self.folder / name).read_text()))
        except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
            raise self._no_authority(name, error) from None

    def _no_authority(self, name: str, error: Exception) -> BadSite:
        return BadSite(
            f"{self.folder}: is no folder of an authority ({name}: {error}); give the folder "
            f"'{AUTHORITY}' that `grandrounds federation provision` made"
        )

    def _write(self, register: Sequence[Issued]) -> None:
        text = json.dumps([asdict(each) for each in register], indent=2) + "\n"
        write_text(self.folder / _REGISTER, text)


def found_authority(settings: Settings, folder: Path) -> Authority:
    """Make a new authority in a folder that its owner alone can open."""
    authority, key = Authority(folder), make_key(folder / _KEY)
    own = Subject(settings.study)
    root = generate_cert(own, own, key, key.public_key(), valid_days=ROOT_DAYS, ca=True)
    write_bytes(authority.root, root.public_bytes(Encoding.PEM))
    write_text(folder / _SETTINGS, json.dumps(asdict(settings), indent=2) + "\n")
    write_text(folder / _REGISTER, "[]\n")
    return authority


def make_key(path: Path) -> RSAPrivateKey:
    """Make a private key in a folder that its owner alone can open. Raises `DiskFailed`."""
    key = generate_private_key(EXPONENT, KEY_BITS)
    plain = (Encoding.PEM, PrivateFormat.TraditionalOpenSSL, NoEncryption())
    write_bytes(path, key.private_bytes(*plain), private=True)
    return key


def issued_as(certificate: x509.Certificate, name: str, owner: str) -> Issued:
    """Return a certificate's entry in the register."""
    return Issued(
        serial=f"{certificate.serial_number:x}",
        name=name,
        owner=owner,
        key=key_digest(cast(RSAPublicKey, certificate.public_key())),
        begins=certificate.not_valid_before_utc.isoformat(timespec="seconds"),
        ends=certificate.not_valid_after_utc.isoformat(timespec="seconds"),
    )


def key_digest(key: RSAPublicKey) -> str:
    """Return the SHA-256 of a public key, by which people can compare it."""
    return sha256(key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)).hexdigest()
