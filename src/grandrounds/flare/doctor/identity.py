"""These checks verify who a party is: its certificate, its private key, and the clock."""

import json
import stat
from datetime import UTC, datetime

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from grandrounds.core.errors import BadSite
from grandrounds.flare.doctor.finding import Finding, Party, bad, ok
from grandrounds.flare.kit import Kit
from grandrounds.study.identity import common_name

NEW_KIT = "ask the coordinator for a new kit (grandrounds federation provision)"
_OTHERS = stat.S_IRWXG | stat.S_IRWXO
_MINUTE = "%Y-%m-%d %H:%M UTC"


def chain(party: Party) -> Finding:
    """Check that the kit's own authority issued its certificate, to this party."""
    own, authority = _read(party)
    try:
        own.verify_directly_issued_by(authority)
    except (InvalidSignature, ValueError, TypeError):
        return bad(f"{party.certificate.name} was not issued by the kit's rootCA.pem", NEW_KIT)
    named, name = common_name(own), _name(party.kit)
    if named != name:
        return bad(f"{party.certificate.name} is made out to '{named}', not to '{name}'", NEW_KIT)
    return ok(f"issued to '{name}' by the federation's authority, '{common_name(authority)}'")


def dates(party: Party) -> Finding:
    """Check that the certificates of the party and of its authority have not expired."""
    end = min(each.not_valid_after_utc for each in _read(party))
    left = end - datetime.now(UTC)
    if left.total_seconds() < 0:
        return bad(f"expired on {end:{_MINUTE}}", NEW_KIT)
    return ok(f"valid until {end:{_MINUTE}}, for {left.days} more days")


def clock(party: Party) -> Finding:
    """Check this machine's clock against the beginning of the kit's certificates."""
    begin = max(each.not_valid_before_utc for each in _read(party))
    now = datetime.now(UTC)
    if now < begin:
        return bad(
            f"{now:{_MINUTE}}, but the kit's certificates begin at {begin:{_MINUTE}}",
            "set this machine's clock (for example by NTP), or wait until then",
        )
    return ok(f"{now:{_MINUTE}}, after the kit's certificates began; no time server was asked")


def key(party: Party) -> Finding:
    """Check that the private key belongs to the certificate, and is readable by its owner only."""
    try:
        private = load_pem_private_key(party.key.read_bytes(), password=None)
    except (OSError, ValueError, TypeError) as error:
        return bad(f"{party.key.name} cannot be read ({error})", NEW_KIT)
    if private.public_key() != _read(party)[0].public_key():
        return bad(f"{party.key.name} is not the key of {party.certificate.name}", NEW_KIT)
    mode = stat.S_IMODE(party.key.stat().st_mode)
    if mode & _OTHERS:
        return bad(f"{party.key.name} is open to others (mode {mode:o})", f"chmod 600 {party.key}")
    return ok(f"{party.key.name} fits, and only its owner may read it (mode {mode:o})")


def _read(party: Party) -> tuple[x509.Certificate, x509.Certificate]:
    """Read the certificates of a party and of its authority. Raises `BadSite`."""
    try:
        own, authority = party.certificate.read_bytes(), party.authority.read_bytes()
        return x509.load_pem_x509_certificate(own), x509.load_pem_x509_certificate(authority)
    except (OSError, ValueError) as error:
        raise BadSite(f"a certificate cannot be read ({error}); {NEW_KIT}") from None


def _name(kit: Kit) -> str:
    """Return the name to which a kit's certificate should be issued."""
    if kit.kind == "admin":
        settings = json.loads((kit.startup / "fed_admin.json").read_text())
        return str(settings["admin"]["username"])
    return kit.name
