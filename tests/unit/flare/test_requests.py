"""A site's own key stays with it; of a request nothing is believed but its name and its key."""

import shutil
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

pytest.importorskip("nvflare", reason="NVIDIA FLARE is not installed")

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey, generate_private_key
from cryptography.hazmat.primitives.hashes import SHA224, SHA256
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID

from grandrounds.core.errors import BadFolder, BadSite
from grandrounds.flare.kit import Kit, accept_study
from grandrounds.flare.processes import kit_command
from grandrounds.flare.provision import provision_kits
from grandrounds.flare.requests import install_key, make_request, read_request, requests_in
from grandrounds.study.identity import read_certificate
from tests.helpers.certificates import new_key
from tests.helpers.federation import tiny


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_a_request_has_the_name_and_the_key_and_the_key_stays_private(tmp_path: Path):
    made, path = make_request("alder", tmp_path / "keys")
    assert (mode(tmp_path / "keys"), mode(tmp_path / "keys" / "alder.key")) == (0o700, 0o600)
    assert b"PRIVATE" not in path.read_bytes()
    found = read_request(path)
    assert (found.site, found.digest) == ("alder", made.digest)
    assert len(found.digest) == 64


def test_a_key_is_never_overwritten(tmp_path: Path):
    make_request("alder", tmp_path)
    before = (tmp_path / "alder.key").read_bytes()
    with pytest.raises(BadFolder, match="give another --out"):
        make_request("alder", tmp_path)
    assert (tmp_path / "alder.key").read_bytes() == before


@pytest.mark.parametrize("name", ["server", "admin", "authority", "pooled", "../a", "a.b", "", "é"])
def test_no_key_is_made_for_what_is_no_site(name: str, tmp_path: Path):
    with pytest.raises(BadSite, match=r"^site "):
        make_request(name, tmp_path / "keys")
    assert not (tmp_path / "keys").exists()


# Requests that somebody made by hand.

KEY: RSAPrivateKey = new_key()
NAMED = [(NameOID.COMMON_NAME, "alder")]
ROLE = (NameOID.UNSTRUCTURED_NAME, "project_admin")


def asked(
    *names: tuple[x509.ObjectIdentifier, str],
    key: object = KEY,
    algorithm: object = SHA256(),
    extension: x509.ExtensionType | None = None,
) -> bytes:
    subject = x509.Name([x509.NameAttribute(oid, text) for oid, text in names or NAMED])
    builder = x509.CertificateSigningRequestBuilder().subject_name(subject)
    if extension:
        builder = builder.add_extension(extension, critical=False)
    signed = builder.sign(key, algorithm)  # pyright: ignore[reportArgumentType]
    return signed.public_bytes(Encoding.PEM)


def unsigned() -> bytes:
    """A request whose signature is of other words."""
    request = x509.load_pem_x509_csr(asked()).public_bytes(Encoding.DER)
    changed = request.replace(b"alder", b"birch")
    return x509.load_der_x509_csr(changed).public_bytes(Encoding.PEM)


HOSTILE: dict[str, tuple[Callable[[], bytes], str]] = {
    "two names": (lambda: asked(*NAMED, (NameOID.COMMON_NAME, "birch")), "more than one name"),
    "the same name twice": (lambda: asked(*NAMED, *NAMED), "more than one name"),
    "a role": (lambda: asked(*NAMED, ROLE), "more than one name"),
    "a role before the name": (lambda: asked(ROLE, *NAMED), "more than one name"),
    "an organisation": (
        lambda: asked(*NAMED, (NameOID.ORGANIZATION_NAME, "coordinator")),
        "more than one name",
    ),
    "no name": (lambda: asked((NameOID.UNSTRUCTURED_NAME, "alder")), "more than one name"),
    "the server": (lambda: asked((NameOID.COMMON_NAME, "server")), "is kept for"),
    "the admin": (lambda: asked((NameOID.COMMON_NAME, "admin")), "is kept for"),
    "a user": (lambda: asked((NameOID.COMMON_NAME, "admin@grandrounds.org")), "a name has letters"),
    "a host": (lambda: asked((NameOID.COMMON_NAME, "fl.example.org")), "has no '.'"),
    "a path": (lambda: asked((NameOID.COMMON_NAME, "../../alder")), "a name has letters"),
    "a look-alike": (lambda: asked((NameOID.COMMON_NAME, "аlder")), "a name has letters"),  # noqa: RUF001
    "a line break": (lambda: asked((NameOID.COMMON_NAME, "alder\n")), "a name has letters"),
    "to be an authority": (
        lambda: asked(extension=x509.BasicConstraints(ca=True, path_length=None)),
        "more than a name",
    ),
    "another host": (
        lambda: asked(extension=x509.SubjectAlternativeName([x509.DNSName("server")])),
        "more than a name",
    ),
    "another's words": (unsigned, "not signed with its own key"),
    "a weak key": (lambda: asked(key=generate_private_key(65537, 1024)), "has 1024 bits"),
    "an odd key": (lambda: asked(key=generate_private_key(3, 2048)), "public exponent"),
    "an EC key": (lambda: asked(key=ec.generate_private_key(ec.SECP256R1())), "not an RSA key"),
    "an Ed25519 key": (
        lambda: asked(key=ed25519.Ed25519PrivateKey.generate(), algorithm=None),
        "not an RSA key",
    ),
    "an old algorithm": (lambda: asked(algorithm=SHA224()), "no longer counts"),
    "two requests": (lambda: asked() * 2, "not one request"),
    "a key in the file": (lambda: b"-----BEGIN PRIVATE KEY-----\n" + asked(), "not one request"),
    "a huge file": (lambda: asked() + b"\n" * 2**20, "not one request"),
    "noise": (lambda: b"\xff" * 100, "not one request"),
    "nothing": (lambda: b"", "not one request"),
    "a cut file": (lambda: asked()[:-100], "not one request"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_request_that_asks_for_anything_else_is_refused_in_a_sentence(name: str, tmp_path: Path):
    make, words = HOSTILE[name]
    path = tmp_path / "alder.csr"
    path.write_bytes(make())
    with pytest.raises(BadSite, match=words) as refused:
        read_request(path)
    assert str(refused.value).startswith(str(path))
    assert "\n" not in str(refused.value)


def test_a_request_that_is_not_there_is_said_to_be(tmp_path: Path):
    with pytest.raises(BadSite, match="cannot be read"):
        read_request(tmp_path / "alder.csr")


def test_requests_are_of_the_study_s_sites_and_bear_their_names(tmp_path: Path):
    with pytest.raises(BadSite, match="is no folder"):
        requests_in(tmp_path / "none", ("alder",))
    with pytest.raises(BadSite, match="has no request"):
        requests_in(tmp_path, ("alder",))
    _, path = make_request("alder", tmp_path)
    assert list(requests_in(tmp_path, ("alder", "birch"))) == ["alder"]
    with pytest.raises(BadSite, match="the study has birch"):
        requests_in(tmp_path, ("birch",))
    path.rename(tmp_path / "birch.csr")
    with pytest.raises(BadSite, match=r"call it alder\.csr"):
        requests_in(tmp_path, ("alder", "birch"))


# The kit of a site that asked.


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Kits of two sites, of which birch has a key of its own, in the folder beside them."""
    folder = tmp_path_factory.mktemp("made")
    request, _ = make_request("birch", folder / "keys")
    provision_kits(tiny(sites=2), "localhost", folder / "kits", requests={"birch": request})
    return folder


@pytest.fixture
def birch(made: Path, tmp_path: Path) -> Kit:
    """A copy of birch's kit, as the coordinator hands it over."""
    return Kit(Path(shutil.copytree(made / "kits" / "birch", tmp_path / "birch")))


def test_a_kit_by_request_has_a_certificate_of_the_site_s_key_and_no_key(made: Path, birch: Kit):
    keys = {path.relative_to(made / "kits") for path in (made / "kits").rglob("*.key")}
    assert Path("birch/startup/client.key") not in keys
    assert Path("alder/startup/client.key") in keys
    public = read_request(made / "keys" / "birch.csr").key
    for certificate in (birch.certificate, birch.look.certificate):
        assert read_certificate(certificate).public_key() == public
    with pytest.raises(BadSite, match="has no private key"):
        kit_command(birch)
    with pytest.raises(BadSite, match="cannot be read as a private key"):
        accept_study(tiny(sites=2), birch)


def test_the_site_s_key_completes_its_kit(made: Path, birch: Kit):
    assert install_key(birch, made / "keys") == birch
    assert mode(birch.key) == 0o600
    assert birch.key.read_bytes() == (made / "keys" / "birch.key").read_bytes()
    assert "uid=birch" in kit_command(birch)
    accept_study(tiny(sites=2), birch)


def test_a_key_that_is_not_the_certificate_s_is_not_put_into_a_kit(birch: Kit, tmp_path: Path):
    make_request("birch", tmp_path / "other")
    with pytest.raises(BadSite, match="is not the key of the certificate"):
        install_key(birch, tmp_path / "other")
    with pytest.raises(BadSite, match="cannot be read as a private key"):
        install_key(birch, tmp_path)
    assert not birch.key.exists()


def test_a_key_is_put_into_a_site_s_kit_alone(made: Path):
    with pytest.raises(BadSite, match="is not the kit of a site"):
        install_key(Kit(made / "kits" / "server"), made / "keys")
