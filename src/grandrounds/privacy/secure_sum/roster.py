"""The sites of one attempt at a round, with the public keys that each of them signed."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from hashlib import sha256

from grandrounds.core.errors import RunFailed
from grandrounds.core.sentence import Name, Sentence, phrase
from grandrounds.privacy.secure_sum.fixed_point import LARGEST_TOTAL

KEY_BYTES = 32
FEWEST_MASKED = 3  # sites: of two, each gets the other's update by taking its own off the sum


class SecureSumRefused(RunFailed):
    """A step of secure aggregation was refused: it could reveal a site's update."""


def refuse_unless(holds: bool, sentence: Sentence) -> None:
    """Raise `SecureSumRefused` with a sentence that may leave the site unless a condition holds."""
    if not holds:
        raise SecureSumRefused(str(sentence), safe=sentence)


@dataclass(frozen=True)
class KeySigner:
    """Signs a site's keys: `certificate` lets the others verify it.

    `verify` returns the name of the site whose certificate's key signed a statement, and raises
    `WrongSignature` for anything else.
    """

    certificate: bytes
    sign: Callable[[bytes], bytes]
    verify: Callable[[bytes, bytes, bytes], str]


@dataclass(frozen=True)
class Advertisement:
    """A site's public keys of one attempt at a round, and its weight in the mean, signed.

    `study` is the study's SHA-256. `sealing` is for shares that others send the site, `masking` for
    masks.
    """

    study: str
    round: int
    site: str
    weight: int
    sealing: bytes
    masking: bytes
    certificate: bytes = b""
    signature: bytes = b""

    @property
    def statement(self) -> bytes:
        """Return what the site signs."""
        keys = (self.sealing.hex(), self.masking.hex())
        facts = (self.study, self.round, self.site, self.weight, *keys)
        return b"grandrounds secure sum keys " + json.dumps(facts).encode()


@dataclass(frozen=True)
class MaskRoster:
    """The sites of one attempt at a round, with their keys and weights, in the study's order."""

    members: tuple[Advertisement, ...]

    @property
    def study(self) -> str:
        return self.members[0].study

    @property
    def round(self) -> int:
        return self.members[0].round

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(member.site for member in self.members)

    @property
    def total(self) -> int:
        """Return the sum of the sites' weights."""
        return sum(member.weight for member in self.members)

    @property
    def fingerprint(self) -> bytes:
        """Return the SHA-256 of all that the members advertise."""
        statements = [member.statement.hex() for member in self.members]
        return sha256(json.dumps(statements).encode()).digest()

    def of(self, site: str) -> Advertisement:
        return self.members[self.names.index(site)]

    def check(
        self,
        own: Advertisement,
        allowed: Sequence[str],
        verify: Callable[[bytes, bytes, bytes], str],
    ) -> None:
        """Refuse a roster that is not of the study's sites, each with keys that it signed itself.

        `own` is what the site itself advertised; `allowed` are the sites of the study in its order.
        Raises `SecureSumRefused`.
        """
        refuse_unless(
            own in self.members,
            phrase("the keys that this site advertised are not among those that came back"),
        )
        self._check_names(allowed)
        keys = [key for member in self.members for key in (member.sealing, member.masking)]
        refuse_unless(
            len(set(keys)) == len(keys) and all(len(key) == KEY_BYTES for key in keys),
            phrase("two sites of a secure sum show the same key, or one shows none"),
        )
        refuse_unless(
            all(member.weight >= 1 for member in self.members) and self.total <= LARGEST_TOTAL,
            phrase("the weights of the sites of a secure sum are not from 1 to 2^31 in all"),
        )
        for member in self.members:
            _check_signature(member, own, verify)

    def _check_names(self, allowed: Sequence[str]) -> None:
        names = self.names
        refuse_unless(
            len(names) >= FEWEST_MASKED,
            phrase("a secure sum of fewer than three sites would show a site's update"),
        )
        refuse_unless(
            names == tuple(name for name in allowed if name in names),
            phrase("the sites of a secure sum are not those of the study, each once and in order"),
        )


def _check_signature(
    member: Advertisement, own: Advertisement, verify: Callable[[bytes, bytes, bytes], str]
) -> None:
    try:
        signer = verify(member.certificate, member.signature, member.statement)
    except ValueError:
        signer = ""
    same = (member.study, member.round, signer) == (own.study, own.round, member.site)
    refuse_unless(
        same,
        phrase(
            "the keys of site '{site}' for this round's secure sum are not signed by that site",
            site=Name(member.site),
        ),
    )
