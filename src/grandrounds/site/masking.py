"""A site's part in secure sums: a session for each attempt at a round, in memory alone."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, assert_never, cast

from grandrounds.core.errors import BadFolder, BadStudy
from grandrounds.core.extras import install_command
from grandrounds.core.files import write_bytes
from grandrounds.core.messages import AdvertiseKeys, KeyRequest, ShareKeys, Unmask
from grandrounds.core.run_folder import SiteFolder
from grandrounds.core.sentence import phrase
from grandrounds.core.weights import Weights
from grandrounds.privacy.secure_sum.roster import KeySigner, SecureSumRefused, refuse_unless
from grandrounds.privacy.secure_sum.wire import (
    REVEALED,
    SHARES,
    bytes_to_tensors,
    keys_from_tensors,
    keys_to_tensors,
    tensors_to_bytes,
)

if TYPE_CHECKING:  # whoever masks nothing needs no cryptography
    from grandrounds.privacy.secure_sum.session import MaskingSession


@dataclass
class SiteMasking:
    """Answers what a site is asked about its keys, and keeps the session that masks its update.

    `study` is the study's SHA-256, `roster` its sites in order, and `signer` signs the site's keys.
    A new attempt at a round forgets the one before. Only whose sum was unmasked is written into
    `folder`: the difference of two sums of one round would be the updates of the sites in which
    they differ.
    """

    site: str
    study: str
    roster: tuple[str, ...]
    signer: KeySigner
    folder: Path
    _session: "MaskingSession | None" = field(default=None, init=False, repr=False)

    def answer(self, request: KeyRequest, weight: int) -> Weights:
        """Return what leaves in answer to a request, `weight` being the site's in the mean.

        Raises `SecureSumRefused`.
        """
        match request:
            case AdvertiseKeys():
                return keys_to_tensors(self._begin(request.round).advertise(weight))
            case ShareKeys():
                members = keys_from_tensors(request.weights, self.roster)
                sealed = self.session_of(request.round).share(members)
                return bytes_to_tensors(SHARES, sealed)
            case Unmask():
                return bytes_to_tensors(REVEALED, self._reveal(request))
            case _:
                assert_never(request)

    def session_of(self, round: int) -> "MaskingSession":
        """Return the session of the newest attempt at a round. Raises `SecureSumRefused`."""
        if self._session is None or self._session.round != round:
            sentence = phrase("no keys were asked for to mask an update of this round")
            raise SecureSumRefused(str(sentence), safe=sentence)
        return self._session

    def _reveal(self, request: Unmask) -> dict[str, bytes]:
        """Reveal shares for one sum of a round, whatever attempt, process or resumption it is."""
        path, number = SiteFolder(self.folder).unmasked, str(request.round)
        known, survivors = _unmasked(path), list(request.survivors)
        refuse_unless(
            known.get(number, survivors) == survivors,
            phrase(
                "round {round} was unmasked before with other survivors: the difference of the two "
                "sums would show the updates of single sites; repeat it with the same sites",
                round=request.round,
            ),
        )
        sealed = tensors_to_bytes(SHARES, request.weights)
        revealed = self.session_of(request.round).reveal(request.survivors, sealed)
        write_bytes(path, json.dumps(known | {number: survivors}).encode(), private=True)
        return revealed

    def _begin(self, round: int) -> "MaskingSession":
        session = masking_session()
        self._session = session(self.site, self.study, round, self.roster, self.signer)
        return self._session


def _unmasked(path: Path) -> dict[str, list[str]]:
    """Read whose sums were unmasked, by round. Raises `BadFolder` for a damaged file."""
    try:
        return cast(dict[str, list[str]], json.loads(path.read_bytes())) if path.exists() else {}
    except ValueError:
        raise BadFolder(
            f"{path}: is damaged, so nobody knows whose updates were unmasked; put it back from a "
            "copy",
            safe=phrase("the file that says whose updates were unmasked is damaged"),
        ) from None


def signer_of_simulation(study: str, site: str) -> KeySigner:
    """Return the signer of a simulated site. Raises `BadStudy` without the package it needs."""
    masking_session()
    from grandrounds.privacy.secure_sum.keys import simulated_signer

    return simulated_signer(study, site)


def masking_session() -> "type[MaskingSession]":
    """Import what masks. Raises `BadStudy` where the package that it needs is not installed."""
    try:
        from grandrounds.privacy.secure_sum.session import MaskingSession
    except ModuleNotFoundError as error:
        raise BadStudy(
            f"privacy.secure_sum needs the package {error.name}: {install_command('privacy')}"
        ) from None
    return MaskingSession
