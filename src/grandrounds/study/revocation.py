"""A federation's authority revokes certificates by a list that it signs and numbers.

The list is an X.509 revocation list (RFC 5280). Each party keeps the newest that it has seen, in
its kit's `local` folder, and never goes back to an older one.
"""

from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding

from grandrounds.core.errors import WrongSignature
from grandrounds.core.files import write_bytes

REVOKED = "revoked.pem"
_LARGEST = 2**19  # bytes: a list goes to the sites with a small letter
_DAMAGED = "the list of revoked certificates cannot be read; ask the coordinator for it"


@dataclass(frozen=True)
class RevocationList:
    """The certificates that no longer count, by serial number; a newer list has a higher number."""

    number: int
    serials: frozenset[int]


def list_beside(root: Path) -> Path:
    """Return where a kit keeps its list; `root` is its `startup/rootCA.pem`."""
    return root.parent.parent / "local" / REVOKED


def list_bytes(root: Path) -> bytes:
    """Return the list that a kit keeps (PEM); empty where nothing was revoked so far."""
    path = list_beside(root)
    return path.read_bytes() if path.exists() else b""


def known_list(root: Path) -> RevocationList:
    """Return the list that a kit keeps. Raises `WrongSignature` where it is damaged."""
    return read_list(list_bytes(root), root.read_bytes())


def keep_list(pem: bytes, root: Path) -> RevocationList:
    """Keep a list if it is newer than the one that is there; return the one that counts now.

    Raises `WrongSignature` where the authority did not sign it.
    """
    news, known = read_list(pem, root.read_bytes()), known_list(root)
    if news.number <= known.number:
        return known
    write_bytes(list_beside(root), pem)
    return news


def check_not_revoked(certificate: x509.Certificate, root: Path) -> None:
    """Check that the authority has not revoked a certificate. Raises `WrongSignature`."""
    if certificate.serial_number in known_list(root).serials:
        raise WrongSignature(
            f"the certificate with the serial number {certificate.serial_number:x} was revoked by "
            "the federation's authority"
        )


@lru_cache(maxsize=8)
def read_list(pem: bytes, root: bytes) -> RevocationList:
    """Read a list that the authority signed; none is a list of nothing. Raises `WrongSignature`."""
    if not pem:
        return RevocationList(0, frozenset())
    try:
        authority = x509.load_pem_x509_certificate(root)
        found = x509.load_pem_x509_crl(pem[:_LARGEST])
        number = found.extensions.get_extension_for_class(x509.CRLNumber).value.crl_number
        signed = found.issuer == authority.subject and found.is_signature_valid(
            authority.public_key()  # pyright: ignore[reportArgumentType] - any other key is refused
        )
        serials = frozenset(each.serial_number for each in found)
    except (ValueError, TypeError, InvalidSignature, UnsupportedAlgorithm, x509.ExtensionNotFound):
        raise WrongSignature(_DAMAGED) from None
    if not signed:
        raise WrongSignature("the list of revoked certificates is not of this federation")
    return RevocationList(number, serials)


def sign_list(
    revoked: RevocationList, key: RSAPrivateKey, root: x509.Certificate, now: datetime
) -> bytes:
    """Return a list, signed by the authority (PEM)."""
    builder = (
        x509.CertificateRevocationListBuilder()
        .issuer_name(root.subject)
        .last_update(now)
        .next_update(root.not_valid_after_utc)  # nobody must have a newer one for a run to go on
        .add_extension(x509.CRLNumber(revoked.number), critical=False)
    )
    for serial in sorted(revoked.serials):
        entry = x509.RevokedCertificateBuilder().serial_number(serial).revocation_date(now)
        builder = builder.add_revoked_certificate(entry.build())
    return builder.sign(key, SHA256()).public_bytes(Encoding.PEM)
