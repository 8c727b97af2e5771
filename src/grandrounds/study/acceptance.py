"""A site accepts a study by signing the study's SHA-256 with its own key.

What signs is imported where it is used: whoever runs on one machine has no cryptography.
"""

import json
from base64 import b64decode, b64encode
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

from grandrounds.core.code import Code
from grandrounds.core.errors import BadSite, WrongSignature
from grandrounds.core.files import write_bytes
from grandrounds.core.names import check_hash
from grandrounds.core.sentence import phrase
from grandrounds.core.serialization import from_plain

FOLDER = "accepted"


@dataclass(frozen=True)
class Acceptance:
    """A site's signature under a study: the site, the study, the time and the certificate.

    `policy` says in words what leaves, to whom and how often, and `code` which installed packages
    the study's own words belong to; both are signed, too.
    `signature` (PKCS #1 v1.5 over SHA-256, base64) is of `statement`; `certificate` (PEM) holds the
    key that verifies it.
    """

    site: str
    study: str
    time: str
    certificate: str
    signature: str = ""
    policy: tuple[str, ...] = ()
    code: tuple[Code, ...] = ()

    @property
    def statement(self) -> bytes:
        """Return the text that is signed."""
        words, time = f"{self.site} takes part in the study {self.study}", f"({self.time})"
        head = [f"{words} {time}"]
        if self.code:
            head = [f"{words} with", *(f"  {each.sentence}" for each in self.code), time]
        return "\n".join((*head, *self.policy)).encode()


def accept(
    study: str,
    key: Path,
    certificate: Path,
    policy: Sequence[str] = (),
    code: Sequence[Code] = (),
) -> Acceptance:
    """Sign a study's SHA-256, its policy in words and its code, with the key of a site's kit.

    Raises `BadSite`.
    """
    from grandrounds.study.identity import common_name, load_key, read_certificate, sign

    proof = read_certificate(certificate)
    now = datetime.now(UTC).isoformat(timespec="seconds")
    acceptance = Acceptance(
        common_name(proof), study, now, certificate.read_text(), "", tuple(policy), tuple(code)
    )
    signature = sign(acceptance.statement, load_key(key))
    return replace(acceptance, signature=b64encode(signature).decode())


def check_acceptance(acceptance: Acceptance, *, site: str, study: str, root: Path) -> None:
    """Check that this site accepted this study, with a certificate of this federation.

    `root` is the certificate of the federation's authority (PEM); the site's must be valid now.
    Raises `BadSite`.
    """
    from grandrounds.study.identity import signer

    if acceptance.study != study:
        raise BadSite(f"site '{site}' accepted another study ({acceptance.study[:12]}...)")
    try:
        signature = b64decode(acceptance.signature)
        name = signer(acceptance.certificate, signature, acceptance.statement, root)
    except (WrongSignature, ValueError) as error:
        raise BadSite(
            f"site '{site}': the signature under its acceptance is not valid ({error}); with a "
            "valid kit, let it accept the study anew"
        ) from None
    if {acceptance.site, name} != {site}:
        raise BadSite(f"site '{site}' shows the acceptance of '{name}'")


def save_acceptance(acceptance: Acceptance, folder: Path) -> Path:
    """Write an acceptance into a site's folder, one file for each study. Raises `BadSite`."""
    path = _file(acceptance.study, folder)
    write_bytes(path, to_json(acceptance))
    return path


def load_acceptance(study: str, folder: Path) -> Acceptance | None:
    """Read a site's acceptance of a study, or return None where there is none."""
    path = _file(study, folder)
    return from_json(path.read_bytes()) if path.exists() else None


def not_accepted(site: str) -> BadSite:
    """Return the refusal of a study that a site has not accepted."""
    return BadSite(
        f"site '{site}' has not accepted this study; look at it and sign it there: "
        "grandrounds site accept STUDY --kit KIT",
        safe=phrase(
            "it has not accepted this study; look at it and sign it there: "
            "grandrounds site accept STUDY --kit KIT"
        ),
    )


def list_acceptances(folder: Path) -> list[Acceptance]:
    """Return all acceptances of a site, the oldest first. Raises `BadSite` for a damaged one."""
    found = [from_json(path.read_bytes()) for path in (folder / FOLDER).glob("*.json")]
    return sorted(found, key=lambda acceptance: acceptance.time)


def withdraw_acceptance(study: str, folder: Path) -> Acceptance:
    """Remove the acceptance of a study, whose SHA-256 may be given by its first digits.

    The site opens for no further run of it; one that goes on is stopped by ending the site's
    process. Raises `BadSite` where there is not exactly one.
    """
    found = [each for each in list_acceptances(folder) if study and each.study.startswith(study)]
    if len(found) != 1:
        known = ", ".join(each.study[:12] for each in list_acceptances(folder)) or "none"
        raise BadSite(f"'{study}': is not one of the accepted studies; they are: {known}")
    _file(found[0].study, folder).unlink()
    return found[0]


def _file(study: str, folder: Path) -> Path:
    """Return the path of a site's acceptance. Raises `BadSite` where `study` is no SHA-256."""
    return folder / FOLDER / f"{check_hash(study, 'accepted study', BadSite)}.json"


def to_json(acceptance: Acceptance) -> bytes:
    """Return an acceptance as JSON; without code it has no such key."""
    fields = asdict(acceptance)
    if not acceptance.code:
        del fields["code"]
    return json.dumps(fields, indent=2).encode()


def from_json(data: bytes) -> Acceptance:
    """Read an acceptance. Raises `BadSite` where it is damaged."""
    try:
        return from_plain(Acceptance, json.loads(data))
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise BadSite(
            f"an acceptance cannot be read ({error}); accept the study anew",
            safe=phrase("its acceptance of the study is damaged; accept the study anew there"),
        ) from None
