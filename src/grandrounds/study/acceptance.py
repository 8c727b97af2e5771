"""A site accepts a study by signing the study's SHA-256 with its own key."""

import json
from base64 import b64decode, b64encode
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import cast

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric import padding
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey, RSAPublicKey
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from cryptography.x509.oid import NameOID

from grandrounds.core.errors import BadSite
from grandrounds.core.files import write_bytes
from grandrounds.core.serialization import from_plain

FOLDER = "accepted"


@dataclass(frozen=True)
class Acceptance:
    """What a site signed: whose word it is, for which study, when, and the proof.

    `signature` (PKCS #1 v1.5 over SHA-256, base64) is of `statement`; `certificate` (PEM) holds the
    key that checks it.
    """

    site: str
    study: str
    time: str
    certificate: str
    signature: str = ""

    @property
    def statement(self) -> bytes:
        """Give the words that are signed."""
        return f"{self.site} takes part in the study {self.study} ({self.time})".encode()


def accept(study: str, key: Path, certificate: Path) -> Acceptance:
    """Sign a study's SHA-256 with the private key of a site's kit. Raises `BadSite`."""
    try:
        private = load_pem_private_key(key.read_bytes(), password=None)
        proof = x509.load_pem_x509_certificate(certificate.read_bytes())
    except (OSError, ValueError) as error:
        raise BadSite(f"{key.parent}: its key or certificate cannot be read ({error})") from None
    now = datetime.now(UTC).isoformat(timespec="seconds")
    word = Acceptance(common_name(proof), study, now, certificate.read_text())
    signature = cast(RSAPrivateKey, private).sign(word.statement, padding.PKCS1v15(), SHA256())
    return Acceptance(**asdict(word) | {"signature": b64encode(signature).decode()})


def check_acceptance(word: Acceptance, *, site: str, study: str, root: Path) -> None:
    """Check that a site itself accepted this study, by a certificate of this federation.

    `root` is the certificate of the federation's authority (PEM); the site's must be valid now.
    Raises `BadSite`.
    """
    if word.study != study:
        raise BadSite(f"site '{site}' accepted another study ({word.study[:12]}...)")
    try:
        proof = x509.load_pem_x509_certificate(word.certificate.encode())
        proof.verify_directly_issued_by(x509.load_pem_x509_certificate(root.read_bytes()))
        public = cast(RSAPublicKey, proof.public_key())
        signature = b64decode(word.signature)
        public.verify(signature, word.statement, padding.PKCS1v15(), SHA256())
    except (InvalidSignature, ValueError, TypeError):
        raise BadSite(f"site '{site}': the signature under its acceptance is not valid") from None
    if {word.site, common_name(proof)} != {site}:
        raise BadSite(f"site '{site}' shows the acceptance of '{common_name(proof)}'")
    _check_dates(site, proof)


def _check_dates(site: str, proof: x509.Certificate) -> None:
    begin, end = proof.not_valid_before_utc, proof.not_valid_after_utc
    if not begin <= datetime.now(UTC) <= end:
        raise BadSite(
            f"site '{site}': the certificate under its acceptance is valid from "
            f"{begin:%Y-%m-%d %H:%M} to {end:%Y-%m-%d %H:%M} UTC, not now; give the site a new "
            "kit, and let it accept the study anew"
        )


def save_acceptance(word: Acceptance, folder: Path) -> Path:
    """Write an acceptance into a site's own folder, one file a study."""
    path = folder / FOLDER / f"{word.study}.json"
    write_bytes(path, to_json(word))
    return path


def load_acceptance(study: str, folder: Path) -> Acceptance | None:
    """Read a site's acceptance of a study, if there is one."""
    path = folder / FOLDER / f"{study}.json"
    return from_json(path.read_bytes()) if path.exists() else None


def to_json(word: Acceptance) -> bytes:
    """Write an acceptance as JSON."""
    return json.dumps(asdict(word), indent=2).encode()


def from_json(data: bytes) -> Acceptance:
    """Read an acceptance. Raises `BadSite` where it is damaged."""
    try:
        return from_plain(Acceptance, json.loads(data))
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise BadSite(f"an acceptance cannot be read ({error}); accept the study anew") from None


def common_name(certificate: x509.Certificate) -> str:
    """Return the name that a certificate was made out to."""
    [name] = certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    return cast(str, name.value)
