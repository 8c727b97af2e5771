"""These checks verify who a party is and what it may do: its certificates, its key, the clock."""

import stat
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from grandrounds.core.errors import BadSite, WrongSignature
from grandrounds.flare.doctor.finding import Finding, Party, bad, ok, soon
from grandrounds.flare.kit import LOOK, RIGHTS, Kit
from grandrounds.study.identity import common_name
from grandrounds.study.revocation import known_list

NEW_KIT = (
    "ask the coordinator for a new kit: a site with a request (grandrounds site request, then "
    "federation renew), the server and the admin with all others (federation provision)"
)
AHEAD = timedelta(days=30)  # before a certificate ends: a new kit takes letters and signatures
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
    """Check that no certificate of the party, nor its authority's, has expired or soon will."""
    own, authority = _read(party)
    looks = party.kit.folder / LOOK / "startup" / "client.crt"
    others = [_certificate(looks)] if looks.exists() else []
    end = min(each.not_valid_after_utc for each in (own, authority, *others))
    now = datetime.now(UTC)
    left = end - now
    if left.total_seconds() < 0:
        return bad(f"expired on {end:{_MINUTE}}", NEW_KIT)
    found = f"valid until {end:{_MINUTE}}, for {left.days} more days"
    if left < AHEAD:
        all_end = authority.not_valid_after_utc - now < AHEAD
        whole = "the authority's own ends: new kits for all (grandrounds federation provision)"
        return soon(found, whole if all_end else NEW_KIT)
    return ok(found)


def revocation(party: Party) -> Finding:
    """Check that the party's certificate was not revoked, as far as the party knows."""
    own, _ = _read(party)
    try:
        known = known_list(party.authority)
    except WrongSignature as error:
        return bad(str(error), f"put the coordinator's newest list into {party.kit.local}")
    if own.serial_number in known.serials:
        return bad(f"{party.certificate.name} was revoked by the federation's authority", NEW_KIT)
    if not known.number:
        return ok("no list of revoked certificates has come here")
    return ok(f"not in list {known.number}, of {len(known.serials)} revoked certificates")


def right(party: Party) -> Finding:
    """Say what the federation lets this kit do."""
    may = party.kit.right
    return ok(f"{may}: this kit {RIGHTS[may]}")


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
    if party.kit.kind == "client" and not party.key.exists():
        mend = f"grandrounds site install {party.kit.folder} --key FOLDER"
        return bad(f"{party.key.name} is missing: the site's own key goes there", mend)
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
    return _certificate(party.certificate), _certificate(party.authority)


def _certificate(path: Path) -> x509.Certificate:
    try:
        return x509.load_pem_x509_certificate(path.read_bytes())
    except (OSError, ValueError) as error:
        raise BadSite(f"a certificate cannot be read ({error}); {NEW_KIT}") from None


def _name(kit: Kit) -> str:
    """Return the name to which a kit's certificate should be issued."""
    return kit.user if kit.kind == "admin" else kit.name
