"""Who adds the masked updates up takes off the masks that are left, and gets the sum alone."""

from collections.abc import Mapping

import numpy as np
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from grandrounds.core.errors import BadUpdate
from grandrounds.core.sentence import Name, phrase
from grandrounds.privacy.secure_sum.fixed_point import MaskedVector
from grandrounds.privacy.secure_sum.keys import mask_key
from grandrounds.privacy.secure_sum.masks import add_mask, add_self_mask, sign_for
from grandrounds.privacy.secure_sum.roster import MaskRoster
from grandrounds.privacy.secure_sum.secret_sharing import restore_secret, threshold_of


def recover_sum(
    roster: MaskRoster,
    masked: Mapping[str, MaskedVector],
    revealed: Mapping[str, Mapping[str, bytes]],
) -> MaskedVector:
    """Return the sum of the updates of all sites whose masked update is here, modulo 2^32.

    `revealed` maps each site that answered to the shares that it revealed, by whose key they are
    of. Raises `BadUpdate` where too few sites answered, or their shares are not of the keys that
    were advertised.
    """
    total = _add_up(roster, masked)
    for site in roster.names:
        secret = _restore(roster, site, revealed)
        if site in masked:
            add_self_mask(total, secret, roster, site, sign=-1)
        else:
            _take_off_pair_masks(total, secret, roster, site, masked)
    return total


def _add_up(roster: MaskRoster, masked: Mapping[str, MaskedVector]) -> MaskedVector:
    needed = threshold_of(len(roster.names))
    if len(masked) < needed:
        raise BadUpdate(
            f"{len(masked)} of {len(roster.names)} sites sent a masked update; a secure sum of "
            f"them needs {needed}",
            safe=phrase(
                "{few} of {all} sites sent a masked update; a secure sum of them needs {needed}",
                few=len(masked),
                all=len(roster.names),
                needed=needed,
            ),
        )
    lengths = {len(vector) for vector in masked.values()}
    if len(lengths) > 1:
        raise BadUpdate("the sites' masked updates have different lengths")
    total = np.zeros(lengths.pop(), np.uint32)
    for vector in masked.values():
        total += vector
    return total


def _restore(roster: MaskRoster, site: str, revealed: Mapping[str, Mapping[str, bytes]]) -> bytes:
    places = {name: place for place, name in enumerate(roster.names)}
    shares = {places[holder]: given[site] for holder, given in revealed.items() if site in given}
    try:
        return restore_secret(shares, threshold_of(len(roster.names)))
    except BadUpdate as error:
        raise BadUpdate(
            f"the mask of site '{site}' cannot be taken off: {error}",
            safe=phrase("the mask of site '{site}' cannot be taken off", site=Name(site)),
        ) from None


def _take_off_pair_masks(
    total: MaskedVector,
    key: bytes,
    roster: MaskRoster,
    dropped: str,
    masked: Mapping[str, MaskedVector],
) -> None:
    """Take off what the survivors added for a site that dropped out."""
    public = X25519PrivateKey.from_private_bytes(key).public_key().public_bytes_raw()
    if public != roster.of(dropped).masking:
        raise BadUpdate(
            f"the shares of the mask key of site '{dropped}' restore another key than it advertised"
        )
    for survivor in masked:
        sign = sign_for(roster, survivor, dropped)
        add_mask(total, mask_key(key, roster, dropped, survivor), -sign)
