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
from grandrounds.core.sentence import phrase
from grandrounds.core.serialization import from_plain

FOLDER = "accepted"


@dataclass(frozen=True)
class Acceptance:
    """A site's signature under a study: the site, the study, the time and the certificate.

    `signature` (PKCS #1 v1.5 over SHA-256, base64) is of `statement`; `certificate` (PEM) holds the
    key that verifies it.
    """

    site: str
    study: str
    time: str
    certificate: str
    signature: str = ""

    @property
    def statement(self) -> bytes:
        """Return the text that is signed."""
        return f"{self.site} takes part in the study {self.study} ({self.time})".encode()


def accept(study: str, key: Path, certificate: Path) -> Acceptance:
    """Sign a study's SHA-256 with the private key of a site's kit. Raises `BadSite`."""
    try:
        private = load_pem_private_key(key.read_bytes(), password=None)
        proof = x509.load_pem_x509_certificate(certificate.read_bytes())
    except (OSError, ValueError) as error:
        raise BadSite(f"{key.parent}: its key or certificate cannot be read ({error})") from None
    now = datetime.now(UTC).isoformat(timespec="seconds")
    acceptance = Acceptance(common_name(proof), study, now, certificate.read_text())
    signature = cast(RSAPrivateKey, private).sign(
        acceptance.statement, padding.PKCS1v15(), SHA256()
    )
    return Acceptance(**asdict(acceptance) | {"signature": b64encode(signature).decode()})


def check_acceptance(acceptance: Acceptance, *, site: str, study: str, root: Path) -> None:
    """Check that this site accepted this study, with a certificate of this federation.

    `root` is the certificate of the federation's authority (PEM); the site's must be valid now.
    Raises `BadSite`.
    """
    if acceptance.study != study:
        raise BadSite(f"site '{site}' accepted another study ({acceptance.study[:12]}...)")
    try:
        proof = x509.load_pem_x509_certificate(acceptance.certificate.encode())
        proof.verify_directly_issued_by(x509.load_pem_x509_certificate(root.read_bytes()))
        public = cast(RSAPublicKey, proof.public_key())
        signature = b64decode(acceptance.signature)
        public.verify(signature, acceptance.statement, padding.PKCS1v15(), SHA256())
    except (InvalidSignature, ValueError, TypeError):
        raise BadSite(f"site '{site}': the signature under its acceptance is not valid") from None
    if {acceptance.site, common_name(proof)} != {site}:
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


def save_acceptance(acceptance: Acceptance, folder: Path) -> Path:
    """Write an acceptance into a site's folder, one file for each study."""
    path = folder / FOLDER / f"{acceptance.study}.json"
    write_bytes(path, to_json(acceptance))
    return path


def load_acceptance(study: str, folder: Path) -> Acceptance | None:
    """Read a site's acceptance of a study, or return None where there is none."""
    path = folder / FOLDER / f"{study}.json"
    return from_json(path.read_bytes()) if path.exists() else None


def to_json(acceptance: Acceptance) -> bytes:
    """Return an acceptance as JSON."""
    return json.dumps(asdict(acceptance), indent=2).encode()


def from_json(data: bytes) -> Acceptance:
    """Read an acceptance. Raises `BadSite` where it is damaged."""
    try:
        return from_plain(Acceptance, json.loads(data))
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise BadSite(
            f"an acceptance cannot be read ({error}); accept the study anew",
            safe=phrase("its acceptance of the study is damaged; accept the study anew there"),
        ) from None


def common_name(certificate: x509.Certificate) -> str:
    """Return the common name of a certificate's subject."""
    [name] = certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    return cast(str, name.value)
