"""What an authority revoked no longer counts, in letters and acceptances; no list goes back."""

from dataclasses import dataclass
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey

from grandrounds.core.errors import BadSite, WrongSignature
from grandrounds.study.acceptance import accept, check_acceptance
from grandrounds.study.identity import load_key, sign, signer
from grandrounds.study.revocation import keep_list, known_list, list_beside, list_bytes
from tests.helpers.certificates import Authority, new_key

STUDY = "a" * 64


@dataclass(frozen=True)
class Federation:
    """An authority, a party's kit that knows it, and a site's key and certificate."""

    authority: Authority
    root: Path
    key: Path
    certificate: Path

    @property
    def signs(self) -> RSAPrivateKey:
        return load_key(self.key)


@pytest.fixture
def federation(tmp_path: Path) -> Federation:
    authority = Authority("tiny", new_key())
    root = authority.root(tmp_path / "kit" / "startup" / "rootCA.pem")
    (tmp_path / "kit" / "local").mkdir()
    return Federation(authority, root, *authority.issue("alder", tmp_path / "alder"))


def signed_by(found: Federation) -> str:
    """The name of who signed a letter, as the party of the kit takes it."""
    text = found.certificate.read_text()
    return signer(text, sign(b"letter", found.signs), b"letter", found.root)


def test_a_signature_by_a_revoked_certificate_does_not_count(federation: Federation):
    assert signed_by(federation) == "alder"
    kept = keep_list(federation.authority.revoke(1, federation.certificate), federation.root)
    assert (kept.number, len(kept.serials)) == (1, 1)
    with pytest.raises(WrongSignature, match="was revoked by the federation's authority"):
        signed_by(federation)


def test_another_certificate_of_the_same_name_still_counts(federation: Federation, tmp_path: Path):
    """So a renewed site goes on, and what it had before does not."""
    key, certificate = federation.authority.issue("alder", tmp_path / "renewed")
    keep_list(federation.authority.revoke(1, federation.certificate), federation.root)
    renewed = Federation(federation.authority, federation.root, key, certificate)
    assert signed_by(renewed) == "alder"


def test_an_acceptance_by_a_revoked_certificate_does_not_count(federation: Federation):
    word = accept(STUDY, federation.key, federation.certificate)
    check_acceptance(word, site="alder", study=STUDY, root=federation.root)
    keep_list(federation.authority.revoke(1, federation.certificate), federation.root)
    with pytest.raises(BadSite, match=r"site 'alder': .* was revoked by the federation's auth"):
        check_acceptance(word, site="alder", study=STUDY, root=federation.root)


def test_a_party_keeps_the_newest_list_and_never_goes_back(federation: Federation, tmp_path: Path):
    authority, root = federation.authority, federation.root
    _, other = authority.issue("birch", tmp_path / "birch")
    older, newer = authority.revoke(1), authority.revoke(2, federation.certificate)
    assert keep_list(older, root).number == 1
    assert keep_list(newer, root).number == 2
    for news in (older, b"", authority.revoke(2, other), authority.revoke(0)):
        assert keep_list(news, root).number == 2
        assert list_bytes(root) == newer
    with pytest.raises(WrongSignature):
        signed_by(federation)


def test_a_list_that_the_authority_did_not_sign_is_not_kept(federation: Federation):
    right = federation.authority.revoke(1, federation.certificate)
    foreign = Authority("tiny", new_key()).revoke(9, federation.certificate)
    other_name = Authority("other", federation.authority.key).revoke(9)
    for wrong in (foreign, other_name, right[:-40], b"none", b"\xff" * 2**20, right[:200] + right):
        with pytest.raises(WrongSignature, match="the list of revoked certificates"):
            keep_list(wrong, federation.root)
    assert not list_beside(federation.root).exists()
    assert signed_by(federation) == "alder"


def test_nobody_counts_where_the_list_was_damaged(federation: Federation):
    """A list that was cut must not let in whom it had."""
    keep_list(federation.authority.revoke(1), federation.root)
    list_beside(federation.root).write_bytes(list_bytes(federation.root)[:-40])
    for use in (lambda: signed_by(federation), lambda: known_list(federation.root)):
        with pytest.raises(WrongSignature, match="cannot be read"):
            use()


def test_without_a_list_nothing_is_revoked(federation: Federation):
    assert known_list(federation.root).number == 0
    assert list_bytes(federation.root) == b""
