"""Every site makes fresh keys for a round, signs them, and agrees on secrets with every other.

Keys are of X25519 (RFC 7748); what is derived from an agreement is by HKDF with SHA-256 (RFC 5869)
and bound to the study, the round, the roster with all its keys, and the pair of sites.
"""

import json
from dataclasses import dataclass, field, replace
from hashlib import sha256

from cryptography.exceptions import InvalidSignature, InvalidTag
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from grandrounds.core.errors import WrongSignature
from grandrounds.core.sentence import Name, phrase
from grandrounds.privacy.secure_sum.roster import (
    KEY_BYTES,
    Advertisement,
    KeySigner,
    MaskRoster,
    SecureSumRefused,
)

_NONCE = bytes(12)  # a key seals one message only


def simulated_signer(study: str, site: str) -> KeySigner:
    """Return the signer of a simulated site, whose key anybody can derive from the study.

    It lets a simulation run the whole protocol; it proves nothing about who signed.
    """
    key = _simulated_key(study, site)

    def verify(certificate: bytes, signature: bytes, statement: bytes) -> str:
        name = certificate.decode(errors="replace")
        try:
            _simulated_key(study, name).public_key().verify(signature, statement)
        except InvalidSignature:
            raise WrongSignature("the signature is not by the key of its certificate") from None
        return name

    return KeySigner(site.encode(), key.sign, verify)


def _simulated_key(study: str, site: str) -> Ed25519PrivateKey:
    seed = sha256(f"grandrounds simulated site\x1f{study}\x1f{site}".encode()).digest()
    return Ed25519PrivateKey.from_private_bytes(seed)


@dataclass(frozen=True)
class MaskKeys:
    """The private keys of a site for one attempt at a round; they never touch a disk."""

    sealing: X25519PrivateKey = field(default_factory=X25519PrivateKey.generate, repr=False)
    masking: X25519PrivateKey = field(default_factory=X25519PrivateKey.generate, repr=False)

    def advertise(
        self, study: str, round: int, site: str, weight: int, *, signer: KeySigner
    ) -> Advertisement:
        """Return the public keys, signed with the study, the round, the site and its weight."""
        own = Advertisement(
            study,
            round,
            site,
            weight,
            self.sealing.public_key().public_bytes_raw(),
            self.masking.public_key().public_bytes_raw(),
            signer.certificate,
        )
        return replace(own, signature=signer.sign(own.statement))


def mask_key(own: bytes, roster: MaskRoster, site: str, peer: str) -> bytes:
    """Return the key of the mask that two sites share; `own` is the private mask key of `site`."""
    private = X25519PrivateKey.from_private_bytes(own)
    return derive(_agree(private, roster.of(peer).masking), roster, "mask", *sorted((site, peer)))


def seal_share(
    share: bytes, own: X25519PrivateKey, roster: MaskRoster, sender: str, to: str
) -> bytes:
    """Encrypt what only `to` may read (ChaCha20-Poly1305, RFC 8439)."""
    key = derive(_agree(own, roster.of(to).sealing), roster, "share", sender, to)
    return ChaCha20Poly1305(key).encrypt(_NONCE, share, roster.fingerprint)


def open_share(
    sealed: bytes, own: X25519PrivateKey, roster: MaskRoster, sender: str, to: str
) -> bytes:
    """Decrypt what `sender` sealed in this attempt at the round. Raises `SecureSumRefused`."""
    key = derive(_agree(own, roster.of(sender).sealing), roster, "share", sender, to)
    try:
        return ChaCha20Poly1305(key).decrypt(_NONCE, sealed, roster.fingerprint)
    except InvalidTag:
        sentence = phrase(
            "what came as the share of site '{site}' was not sealed by it for this attempt",
            site=Name(sender),
        )
        raise SecureSumRefused(str(sentence), safe=sentence) from None


def derive(secret: bytes, roster: MaskRoster, *purpose: str) -> bytes:
    """Return a key of 32 bytes for one purpose in one attempt at a round."""
    facts = ["grandrounds secure sum", roster.study, roster.round, *purpose]
    info = json.dumps(facts).encode() + roster.fingerprint
    return HKDF(SHA256(), KEY_BYTES, None, info).derive(secret)


def _agree(own: X25519PrivateKey, theirs: bytes) -> bytes:
    """Return the X25519 secret; a key of low order, which makes it zero, is refused."""
    try:
        return own.exchange(X25519PublicKey.from_public_bytes(theirs))
    except ValueError:
        sentence = phrase("a key of a secure sum is no key of X25519")
        raise SecureSumRefused(str(sentence), safe=sentence) from None
