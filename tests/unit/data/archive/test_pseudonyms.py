"""A patient's pseudonym follows from the site's key alone, and the key stays where it was made."""

import hashlib
import hmac
from pathlib import Path

import pytest

from grandrounds.core.errors import BadSite
from grandrounds.data.archive.pseudonyms import Pseudonyms, open_pseudonyms

KEY = bytes(range(32))


def test_a_pseudonym_is_a_keyed_hash_and_spaces_about_an_id_do_not_count():
    whole = hmac.new(KEY, b"patient\x00PID-7", hashlib.sha256).hexdigest()
    assert Pseudonyms(KEY).patient(" PID-7 ") == f"sub-{whole[:16]}"
    assert Pseudonyms(KEY).patient("PID-7") == f"sub-{whole[:16]}"


def test_a_case_and_a_patient_of_one_word_have_nothing_in_common():
    names = Pseudonyms(KEY)
    assert names.patient("a") != f"sub-{names.case('a')}"


def test_another_key_gives_another_name_and_no_key_is_shown():
    assert Pseudonyms(KEY).patient("a") != Pseudonyms(bytes(32)).patient("a")
    assert "x01" not in repr(Pseudonyms(KEY))


def test_a_key_is_made_once_for_its_owner_alone(tmp_path: Path):
    path = tmp_path / "private" / "key"
    made = open_pseudonyms(path, make=True)
    assert path.stat().st_mode & 0o777 == 0o600
    assert open_pseudonyms(path, make=True) == made == open_pseudonyms(path, make=False)


def test_a_key_that_is_gone_is_not_replaced(tmp_path: Path):
    with pytest.raises(BadSite, match="the key of the pseudonyms is gone"):
        open_pseudonyms(tmp_path / "key", make=False)


def test_a_key_that_others_read_or_that_is_none_is_refused(tmp_path: Path):
    path = tmp_path / "key"
    path.write_bytes(KEY)
    path.chmod(0o640)
    with pytest.raises(BadSite, match=r"others can read the key \(mode 640\)"):
        open_pseudonyms(path, make=False)
    path.chmod(0o600)
    path.write_bytes(KEY[:5])
    with pytest.raises(BadSite, match="is no key of 32 bytes"):
        open_pseudonyms(path, make=False)
