"""A party signs with its own key; a certificate of the federation lets others verify that."""

from base64 import b64decode, b64encode
from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path
from typing import cast

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric import padding
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey, RSAPublicKey
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from cryptography.x509.oid import NameOID

from grandrounds.core.errors import BadSite, WrongSignature
from grandrounds.study.revocation import check_not_revoked


def load_key(path: Path) -> RSAPrivateKey:
    """Read a private key. Raises `BadSite`."""
    try:
        return cast(RSAPrivateKey, load_pem_private_key(path.read_bytes(), password=None))
    except (OSError, ValueError) as error:
        raise BadSite(f"{path}: cannot be read as a private key ({_cause(error)})") from None


def read_certificate(path: Path) -> x509.Certificate:
    """Read a certificate (PEM). Raises `BadSite`."""
    try:
        return x509.load_pem_x509_certificate(path.read_bytes())
    except (OSError, ValueError) as error:
        raise BadSite(f"{path}: cannot be read as a certificate ({_cause(error)})") from None


def _cause(error: Exception) -> str:
    return str(error.strerror) if isinstance(error, OSError) else "it is no PEM file of one"


def sign(statement: bytes, key: RSAPrivateKey) -> bytes:
    """Sign a statement: PKCS #1 v1.5 over SHA-256."""
    return key.sign(statement, padding.PKCS1v15(), SHA256())


def signer(certificate: str, signature: bytes, statement: bytes, root: Path) -> str:
    """Return the name in a certificate (PEM) whose key signed a statement.

    `root` is the certificate of the federation's authority, in a party's kit, which keeps the list
    of what was revoked. Raises `WrongSignature`.
    """
    proof = _issued(certificate, root.read_bytes())
    check_dates(proof)
    check_not_revoked(proof, root)
    try:
        public = cast(RSAPublicKey, proof.public_key())
        public.verify(signature, statement, padding.PKCS1v15(), SHA256())
    except (InvalidSignature, TypeError, AttributeError):
        raise WrongSignature("the signature is not by the key of its certificate") from None
    return common_name(proof)


def signer_then(
    certificate: str, signature: str, statement: bytes, moment: float, root: Path | None = None
) -> str:
    """Return the name in a certificate (PEM) whose key signed a statement at a moment (unix).

    It must have been valid then; with `root`, issued by the federation's authority. Without, it
    proves that one key signed all, not whose. Raises `WrongSignature`.
    """
    try:
        proof = (
            _issued(certificate, root.read_bytes())
            if root
            else x509.load_pem_x509_certificate(certificate.encode())
        )
        raw = b64decode(signature, validate=True)
        if b64encode(raw).decode() != signature:  # spare bits: the same signature, written apart
            raise ValueError
        public = cast(RSAPublicKey, proof.public_key())
        public.verify(raw, statement, padding.PKCS1v15(), SHA256())
    except WrongSignature:
        raise
    except (InvalidSignature, ValueError, TypeError, AttributeError):
        raise WrongSignature("the signature is not by the key of its certificate") from None
    then = datetime.fromtimestamp(moment, UTC)
    if not proof.not_valid_before_utc <= then <= proof.not_valid_after_utc:
        raise WrongSignature(f"the certificate was not valid on {then:%Y-%m-%d %H:%M} UTC")
    return common_name(proof)


@lru_cache(maxsize=64)
def _issued(certificate: str, root: bytes) -> x509.Certificate:
    """Read a certificate that the authority has issued. Raises `WrongSignature`."""
    try:
        proof = x509.load_pem_x509_certificate(certificate.encode())
        proof.verify_directly_issued_by(x509.load_pem_x509_certificate(root))
    except (InvalidSignature, ValueError, TypeError):
        raise WrongSignature("the certificate is not of this federation") from None
    return proof


def check_dates(proof: x509.Certificate) -> None:
    """Check that a certificate is valid now. Raises `WrongSignature`."""
    begin, end = proof.not_valid_before_utc, proof.not_valid_after_utc
    if not begin <= datetime.now(UTC) <= end:
        raise WrongSignature(
            f"the certificate is valid from {begin:%Y-%m-%d %H:%M} to {end:%Y-%m-%d %H:%M} UTC, "
            "not now"
        )


def common_name(certificate: x509.Certificate) -> str:
    """Return the common name of a certificate's subject. Raises `WrongSignature`."""
    names = certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    if len(names) != 1:
        raise WrongSignature("the certificate does not bear one name")
    return cast(str, names[0].value)


def role_of(certificate: x509.Certificate) -> str:
    """Return NVFlare's role in a certificate, which users have; empty for a server or a site."""
    roles = certificate.subject.get_attributes_for_oid(NameOID.UNSTRUCTURED_NAME)
    return ", ".join(str(each.value) for each in roles)
