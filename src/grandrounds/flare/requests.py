"""A site makes its own key, which never leaves it, and asks the authority for a certificate."""

import re
import shutil
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey
from cryptography.hazmat.primitives.hashes import SHA256, SHA384, SHA512
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID

from grandrounds.core.errors import BadFolder, BadSite, WrongSignature
from grandrounds.core.files import write_bytes
from grandrounds.core.names import check_site_name
from grandrounds.flare.authority import EXPONENT, KEY_BITS, key_digest, make_key
from grandrounds.flare.kit import Kit
from grandrounds.study.identity import load_key, read_certificate
from grandrounds.study.revocation import keep_list, list_bytes

KEY, REQUEST = ".key", ".csr"
_LARGEST = 2**14  # bytes of a request
_LONGEST = 8192  # bits of a key: longer ones cost every party time
_AGAIN = "let the site make a new one with `grandrounds site request`"
_BEGIN = re.compile(rb"-----BEGIN ")


@dataclass(frozen=True)
class SiteRequest:
    """A site's request for a certificate: its name and its public key."""

    site: str
    key: RSAPublicKey

    @property
    def digest(self) -> str:
        """Return the SHA-256 of the public key, which the site reads out to the authority."""
        return key_digest(self.key)


def make_request(site: str, folder: Path) -> tuple[SiteRequest, Path]:
    """Make a site's private key in a folder that its owner alone can open, and a request beside it.

    Raises `BadSite` for a name that no site has, and `BadFolder` where there is a key already.
    """
    check_site_name(site, "site", BadSite)
    secret, path = folder / f"{site}{KEY}", folder / f"{site}{REQUEST}"
    if secret.exists() or path.exists():
        raise BadFolder(f"{folder}: has a key or a request of '{site}' already; give another --out")
    key = make_key(secret)
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, site)])
    asked = x509.CertificateSigningRequestBuilder().subject_name(subject).sign(key, SHA256())
    write_bytes(path, asked.public_bytes(Encoding.PEM), private=True)
    return SiteRequest(site, key.public_key()), path


def read_request(path: Path) -> SiteRequest:
    """Read a site's request, of which nothing is believed but the name and the key.

    Its key must have signed it. Raises `BadSite` for anything else that it asks for.
    """
    asked = _parsed(path)
    if problem := _problem(asked):
        raise BadSite(f"{path}: {problem}; {_AGAIN}")
    [name] = asked.subject
    key = asked.public_key()
    assert isinstance(key, RSAPublicKey), "_problem has looked"
    return SiteRequest(check_site_name(name.value, f"{path}: its site", BadSite), key)


def _parsed(path: Path) -> x509.CertificateSigningRequest:
    try:
        with path.open("rb") as file:
            data = file.read(_LARGEST + 1)
        if len(data) > _LARGEST or len(_BEGIN.findall(data)) != 1:
            raise ValueError("it is not one request in PEM")
        return x509.load_pem_x509_csr(data)
    except OSError as error:
        raise BadSite(f"{path}: cannot be read ({error.strerror})") from None
    except (ValueError, TypeError, UnsupportedAlgorithm):
        raise BadSite(f"{path}: is not one request for a certificate, in PEM; {_AGAIN}") from None


def _problem(asked: x509.CertificateSigningRequest) -> str:
    """Say what is wrong with a request; empty where nothing is."""
    try:
        return _problem_of_key(asked) or _problem_of_names(asked)
    except (ValueError, TypeError, InvalidSignature, UnsupportedAlgorithm):
        return "it cannot be read to its end"


def _problem_of_key(asked: x509.CertificateSigningRequest) -> str:
    key = asked.public_key()
    if not isinstance(key, RSAPublicKey):
        return "its key is not an RSA key, with which letters are signed"
    if not KEY_BITS <= key.key_size <= _LONGEST:
        return f"its key has {key.key_size} bits; from {KEY_BITS} to {_LONGEST} are taken"
    if key.public_numbers().e != EXPONENT:
        return f"its key has another public exponent than {EXPONENT}"
    return ""


def _problem_of_names(asked: x509.CertificateSigningRequest) -> str:
    if not isinstance(asked.signature_hash_algorithm, SHA256 | SHA384 | SHA512):
        return "it is signed with an algorithm that no longer counts"
    if not asked.is_signature_valid:
        return "it is not signed with its own key"
    if [each.oid for each in asked.subject] != [NameOID.COMMON_NAME]:
        return "it asks for more than one name: a request names its site, and nothing else"
    if len(asked.extensions) or len(asked.attributes):
        return "it asks for more than a name; the authority alone decides what a kit may do"
    return ""


def requests_in(folder: Path, sites: tuple[str, ...]) -> dict[str, SiteRequest]:
    """Return the requests in a folder, NAME.csr for each site NAME of a study.

    Raises `BadSite` for a request that is of no site of the study, or in another's name.
    """
    if not folder.is_dir():
        raise BadSite(f"{folder}: is no folder of requests (NAME.csr)")
    found = dict[str, SiteRequest]()
    for path in sorted(folder.glob(f"*{REQUEST}")):
        request = read_request(path)
        if request.site not in sites:
            raise BadSite(f"{path}: is of '{request.site}'; the study has {', '.join(sites)}")
        if path.name != f"{request.site}{REQUEST}":
            raise BadSite(f"{path}: is of '{request.site}'; call it {request.site}{REQUEST}")
        found[request.site] = request
    if not found:
        raise BadSite(f"{folder}: has no request (NAME{REQUEST}) of a site of the study")
    return found


def install_key(new: Kit, folder: Path, into: Kit | None = None) -> Kit:
    """Put a site's own key into the kit that was made for it, and return the complete kit.

    `into` is the site's kit so far: its certificate is replaced, and all else stays: site file,
    acceptances, runs. Raises `BadSite` where key, certificate and kits do not belong together.
    """
    secret = folder / f"{_site_of(new)}{KEY}"
    certificate = read_certificate(new.certificate)
    if load_key(secret).public_key() != certificate.public_key():
        raise BadSite(
            f"{secret}: is not the key of the certificate in {new.folder}; give the --key folder "
            "that `grandrounds site request` made for this very request"
        )
    if into:
        _check_same(new, into)
        return _replaced(into, new, secret.read_bytes())
    write_bytes(new.key, secret.read_bytes(), private=True)
    return new


def _site_of(kit: Kit) -> str:
    if kit.kind != "client":
        raise BadSite(f"{kit.folder}: is not the kit of a site")
    return kit.name


def _check_same(new: Kit, old: Kit) -> None:
    """Check that both kits are of one site in one federation. Raises `BadSite`."""
    if _site_of(new) != _site_of(old):
        raise BadSite(f"{new.folder} is of site '{new.name}', {old.folder} of '{old.name}'")
    if new.root.read_bytes() != old.root.read_bytes():
        raise BadSite(f"{new.folder} and {old.folder} are of two federations; keep them apart")


def _replaced(old: Kit, new: Kit, secret: bytes) -> Kit:
    """Replace a kit's certificates and key; each folder of them at one moment."""
    try:
        keep_list(list_bytes(new.root), old.root)
    except WrongSignature as error:
        raise BadSite(f"{new.folder}: {error}") from None
    for part in (new.look.folder, new.startup):
        there = old.folder / part.name
        fresh, gone = (there.with_name(f".{part.name}.{word}") for word in ("new", "old"))
        for left in (fresh, gone):
            shutil.rmtree(left, ignore_errors=True)
        shutil.copytree(part, fresh)
        if part == new.startup:
            write_bytes(fresh / new.key.name, secret, private=True)
        if there.exists():
            there.rename(gone)
        fresh.rename(there)
        shutil.rmtree(gone, ignore_errors=True)
    return old
