"""A federation's authority for tests: what it issues is real, and may have expired."""

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey, generate_private_key
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
)
from cryptography.x509.oid import NameOID

from grandrounds.study.identity import read_certificate
from grandrounds.study.revocation import RevocationList, sign_list


def _called(name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])


def new_key() -> RSAPrivateKey:
    """A private key, as NVFlare makes them."""
    return generate_private_key(public_exponent=65537, key_size=2048)


@dataclass(frozen=True)
class Authority:
    """Who signs certificates; each begins and ends `days` from now, which may be negative."""

    name: str
    key: RSAPrivateKey

    def issue(self, name: str, folder: Path, days: tuple[int, int] = (-1, 1)) -> tuple[Path, Path]:
        """Write a site's private key and certificate: client.key and client.crt."""
        own = new_key()
        word = self._signed(name, own, days)
        key, certificate = folder / "client.key", folder / "client.crt"
        folder.mkdir(parents=True, exist_ok=True)
        plain = (Encoding.PEM, PrivateFormat.TraditionalOpenSSL, NoEncryption())
        key.write_bytes(own.private_bytes(*plain))
        key.chmod(0o600)
        certificate.write_bytes(word.public_bytes(Encoding.PEM))
        return key, certificate

    def root(self, path: Path, days: tuple[int, int] = (-1000, 1000)) -> Path:
        """Write the authority's own certificate."""
        word = self._signed(self.name, self.key, days)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(word.public_bytes(Encoding.PEM))
        return path

    def revoke(self, number: int, *certificates: Path) -> bytes:
        """Sign a list of revoked certificates."""
        serials = frozenset(read_certificate(path).serial_number for path in certificates)
        root = self._signed(self.name, self.key, (-1000, 1000))
        return sign_list(RevocationList(number, serials), self.key, root, datetime.now(UTC))

    def _signed(self, name: str, key: RSAPrivateKey, days: tuple[int, int]) -> x509.Certificate:
        now = datetime.now(UTC)
        begin, end = (now + timedelta(days=day) for day in days)
        return (
            x509.CertificateBuilder()
            .subject_name(_called(name))
            .issuer_name(_called(self.name))
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(begin)
            .not_valid_after(end)
            .add_extension(x509.BasicConstraints(ca=name == self.name, path_length=None), True)
            .add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), False)
            .sign(self.key, SHA256())
        )
