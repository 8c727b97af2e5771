"""Between hospitals the keys of a secure sum are signed with the keys of the sites' kits."""

from functools import partial
from pathlib import Path

import pytest

from grandrounds.engines.envelope import SealingKey
from grandrounds.privacy.secure_sum.roster import KeySigner, SecureSumRefused
from grandrounds.privacy.secure_sum.session import MaskingSession
from grandrounds.runs.remote import mask_signer
from grandrounds.study.identity import load_key, sign, signer
from tests.helpers.certificates import Authority, new_key

pytestmark = pytest.mark.slow

STUDY, NAMES = "7" * 64, ("alder", "birch", "cedar")


def signer_in(authority: Authority, name: str, root: Path) -> KeySigner:
    key, certificate = authority.issue(name, root.parent / name)
    signs = partial(sign, key=load_key(key))
    return mask_signer(SealingKey(certificate.read_text(), signs, partial(signer, root=root)))


def session(name: str, signs: KeySigner) -> MaskingSession:
    return MaskingSession(name, STUDY, 1, NAMES, signs)


def test_a_site_takes_keys_that_sites_of_its_federation_signed_and_no_others(tmp_path: Path):
    authority = Authority("tiny", new_key())
    root = authority.root(tmp_path / "kits" / "rootCA.pem")
    signers = {name: signer_in(authority, name, root) for name in NAMES}
    keys = {name: session(name, signers[name]).advertise(8) for name in NAMES}
    foreign = Authority("other", new_key())
    stranger = signer_in(foreign, "birch", foreign.root(tmp_path / "other" / "rootCA.pem"))
    for wrong in (session("birch", stranger), session("birch", signers["cedar"])):
        alder = session("alder", signers["alder"])
        members = [alder.advertise(8), wrong.advertise(8), keys["cedar"]]
        with pytest.raises(SecureSumRefused, match="keys of site 'birch'"):
            alder.share(members)
    alder = session("alder", signers["alder"])
    sealed = alder.share([alder.advertise(8), keys["birch"], keys["cedar"]])
    assert set(sealed) == {"birch", "cedar"}
