"""A site's part of one attempt at a round: keys, shares, a masked update, shares revealed."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from secrets import token_bytes

from grandrounds.core.sentence import phrase
from grandrounds.privacy.secure_sum.fixed_point import MaskedVector
from grandrounds.privacy.secure_sum.keys import MaskKeys, open_share, seal_share
from grandrounds.privacy.secure_sum.masks import add_pair_masks, add_self_mask
from grandrounds.privacy.secure_sum.roster import (
    Advertisement,
    KeySigner,
    MaskRoster,
    SecureSumRefused,
    refuse_unless,
)
from grandrounds.privacy.secure_sum.secret_sharing import (
    SECRET_BYTES,
    SHARE_BYTES,
    split_secret,
    threshold_of,
)


@dataclass
class MaskingSession:
    """The four steps of a site in one attempt at a round, each taken once and in order.

    Its secrets are drawn from the system's generator, live in memory alone, and mask one update: a
    round that is repeated, also after a restart, has a new session. `allowed` are the sites of the
    study in its order. What could reveal the site's update raises `SecureSumRefused`.
    """

    site: str
    study: str
    round: int
    allowed: tuple[str, ...]
    signer: KeySigner
    _keys: MaskKeys = field(default_factory=MaskKeys, repr=False)
    _secret: bytes = field(default_factory=partial(token_bytes, SECRET_BYTES), repr=False)
    _advertised: Advertisement | None = field(default=None, init=False)
    _roster: MaskRoster | None = field(default=None, init=False)
    _shares: Mapping[str, bytes] = field(default_factory=dict[str, bytes], init=False, repr=False)
    _masked: bool = field(default=False, init=False)
    _survivors: tuple[str, ...] = field(default=(), init=False)

    @property
    def roster(self) -> MaskRoster:
        """Return the sites for which this one masks. Raises `SecureSumRefused` before it knows."""
        if self._roster is None:
            raise _not_exchanged()
        return self._roster

    @property
    def weight(self) -> int:
        """Return this site's weight in the mean."""
        return self.roster.of(self.site).weight

    @property
    def total(self) -> int:
        """Return the weights of all sites of the attempt."""
        return self.roster.total

    def advertise(self, weight: int) -> Advertisement:
        """Return the site's public keys and its weight in the mean, signed."""
        if self._advertised is None:
            self._advertised = self._keys.advertise(
                self.study, self.round, self.site, weight, signer=self.signer
            )
        return self._advertised

    def share(self, members: Sequence[Advertisement]) -> dict[str, bytes]:
        """Take the others' keys, and return for each of them its sealed shares of this site's."""
        refuse_unless(
            self._roster is None,
            phrase("the keys of a secure sum are shared once; a new attempt draws new ones"),
        )
        if self._advertised is None:
            raise _not_exchanged()
        roster = MaskRoster(tuple(members))
        roster.check(self._advertised, self.allowed, self.signer.verify)
        names = roster.names
        needed = threshold_of(len(names))
        masking = split_secret(self._keys.masking.private_bytes_raw(), needed, len(names))
        secret = split_secret(self._secret, needed, len(names))
        pairs = {name: a + b for name, a, b in zip(names, masking, secret, strict=True)}
        self._roster, self._shares = roster, {self.site: pairs[self.site]}
        return {
            peer: seal_share(pairs[peer], self._keys.sealing, roster, self.site, peer)
            for peer in names
            if peer != self.site
        }

    def mask(self, vector: MaskedVector) -> None:
        """Mask an update in place: the only one of this session."""
        roster = self.roster
        refuse_unless(
            not self._masked, phrase("the masks of this attempt at the round were used already")
        )
        self._masked = True
        add_pair_masks(vector, self._keys.masking.private_bytes_raw(), roster, self.site)
        add_self_mask(vector, self._secret, roster, self.site, sign=1)

    def reveal(self, survivors: Sequence[str], sealed: Mapping[str, bytes]) -> dict[str, bytes]:
        """Return the shares that take the masks off the sum of the survivors' updates.

        `sealed` are the shares that all others sealed for this site. Of a survivor it is the share
        of its own mask's secret, of a site that dropped out that of its private mask key: never of
        both, as the survivors are named once.
        """
        roster, named = self.roster, tuple(survivors)
        self._check_survivors(roster, named)
        peers = {name for name in roster.names if name != self.site}
        refuse_unless(
            set(sealed) == peers,
            phrase("the shares of all sites of a secure sum must come with the survivors"),
        )
        # Every peer seals with the keys of this attempt, so that an earlier one's, of which the
        # aggregator may know secrets, cannot stand in the roster: nothing is revealed before.
        opened = {
            peer: open_share(sealed[peer], self._keys.sealing, roster, peer, self.site)
            for peer in sorted(peers)
        }
        self._survivors = named
        return {
            name: pair[SHARE_BYTES:] if name in named else pair[:SHARE_BYTES]
            for name, pair in (opened | dict(self._shares)).items()
        }

    def _check_survivors(self, roster: MaskRoster, named: tuple[str, ...]) -> None:
        refuse_unless(self._masked, phrase("this site has masked no update in this attempt"))
        refuse_unless(
            named == tuple(name for name in roster.names if name in named) and self.site in named,
            phrase("the survivors are not sites of this secure sum in order, this one among them"),
        )
        refuse_unless(
            len(named) >= threshold_of(len(roster.names)),
            phrase(
                "{few} survivors of {all} sites: too few to take the masks off their sum",
                few=len(named),
                all=len(roster.names),
            ),
        )
        refuse_unless(
            self._survivors in ((), named),
            phrase(
                "other survivors were named before: both keys of a site would show its own update"
            ),
        )


def _not_exchanged() -> SecureSumRefused:
    sentence = phrase("the keys of this round's secure sum were not exchanged")
    return SecureSumRefused(str(sentence), safe=sentence)
