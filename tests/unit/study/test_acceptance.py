"""A site's signed word that it takes part: which words count, and which do not."""

import json
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from grandrounds.core.code import Code
from grandrounds.core.errors import BadSite
from grandrounds.study.acceptance import (
    Acceptance,
    accept,
    check_acceptance,
    from_json,
    list_acceptances,
    load_acceptance,
    save_acceptance,
    to_json,
    withdraw_acceptance,
)
from tests.helpers.certificates import Authority, new_key

STUDY, ANOTHER = "a" * 64, "b" * 64
CODE = (
    Code("our_methods:MRMTL", "our-methods", "0.3.1", "5be1" * 16),
    Code("monai.networks.nets:SegResNet", "monai", "1.6.1", "4337" * 16),
)
BEFORE = Path(__file__).with_name("accepted")  # as it was signed before code could be named


@pytest.fixture(scope="module")
def authority() -> Authority:
    return Authority("tiny", new_key())


@pytest.fixture(scope="module")
def root(authority: Authority, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return authority.root(tmp_path_factory.mktemp("root") / "rootCA.pem")


@pytest.fixture(scope="module")
def word(authority: Authority, tmp_path_factory: pytest.TempPathFactory) -> Acceptance:
    return accept(STUDY, *authority.issue("alder", tmp_path_factory.mktemp("alder")))


def test_a_site_s_own_word_for_this_study_counts(word: Acceptance, root: Path):
    check_acceptance(word, site="alder", study=STUDY, root=root)
    assert (word.site, word.study) == ("alder", STUDY)


def test_a_word_is_kept_for_each_study_and_read_again(word: Acceptance, root: Path, tmp_path: Path):
    path = save_acceptance(word, tmp_path)
    assert path == tmp_path / "accepted" / f"{STUDY}.json"
    again = load_acceptance(STUDY, tmp_path)
    assert again is not None
    assert again == word
    check_acceptance(again, site="alder", study=STUDY, root=root)
    assert load_acceptance(ANOTHER, tmp_path) is None


@pytest.mark.parametrize("study", ["../../startup/client", "a" * 63, "A" * 64, "", "a" * 64 + "\n"])
def test_no_file_is_read_or_written_for_what_is_no_sha_256(
    study: str, word: Acceptance, tmp_path: Path
):
    with pytest.raises(BadSite, match=r"^accepted study .+: it must be a SHA-256"):
        load_acceptance(study, tmp_path)
    with pytest.raises(BadSite, match=r"^accepted study .+: it must be a SHA-256"):
        save_acceptance(replace(word, study=study), tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_word_for_another_study_does_not_count(word: Acceptance, root: Path):
    with pytest.raises(BadSite, match="'alder' accepted another study"):
        check_acceptance(word, site="alder", study=ANOTHER, root=root)


def test_another_site_s_word_does_not_count(word: Acceptance, root: Path):
    with pytest.raises(BadSite, match="site 'birch' shows the acceptance of 'alder'"):
        check_acceptance(word, site="birch", study=STUDY, root=root)


def test_a_word_in_another_site_s_name_does_not_count(
    authority: Authority, root: Path, tmp_path: Path
):
    key, certificate = authority.issue("alder", tmp_path)
    honest = accept(STUDY, key, certificate)
    with pytest.raises(BadSite, match="'birch'"):
        check_acceptance(replace(honest, site="birch"), site="birch", study=STUDY, root=root)


def test_a_word_by_a_foreign_authority_of_the_same_name_does_not_count(root: Path, tmp_path: Path):
    foreign = Authority("tiny", new_key())
    word = accept(STUDY, *foreign.issue("alder", tmp_path))
    with pytest.raises(BadSite, match="signature under its acceptance is not valid"):
        check_acceptance(word, site="alder", study=STUDY, root=root)


def test_a_certificate_that_signs_itself_does_not_count(root: Path, tmp_path: Path):
    alone = Authority("alder", new_key())
    word = accept(STUDY, *alone.issue("alder", tmp_path))
    with pytest.raises(BadSite, match="signature under its acceptance is not valid"):
        check_acceptance(word, site="alder", study=STUDY, root=root)


@pytest.mark.parametrize("days", [(-10, -1), (1, 10)], ids=["expired yesterday", "begins tomorrow"])
def test_a_certificate_counts_only_while_it_is_valid(
    days: tuple[int, int], authority: Authority, root: Path, tmp_path: Path
):
    word = accept(STUDY, *authority.issue("alder", tmp_path, days))
    with pytest.raises(BadSite, match=r"valid from .* not now.; with a valid kit"):
        check_acceptance(word, site="alder", study=STUDY, root=root)


@pytest.mark.parametrize("key", ["site", "study", "time", "signature", "certificate"])
def test_a_word_that_was_changed_does_not_count(
    key: str, word: Acceptance, authority: Authority, root: Path, tmp_path: Path
):
    later = replace(accept(ANOTHER, *authority.issue("birch", tmp_path)), time="2100-01-01")
    changed = Acceptance(**asdict(word) | {key: asdict(later)[key]})
    with pytest.raises(BadSite, match="not valid"):
        check_acceptance(changed, site="alder", study=changed.study, root=root)


@pytest.mark.parametrize("signature", ["", "?", "é", "AAAA"])
def test_a_signature_that_is_none_does_not_count(signature: str, word: Acceptance, root: Path):
    with pytest.raises(BadSite, match="not valid"):
        check_acceptance(replace(word, signature=signature), site="alder", study=STUDY, root=root)


def test_a_certificate_that_is_none_does_not_count(word: Acceptance, root: Path):
    with pytest.raises(BadSite, match="not valid"):
        check_acceptance(replace(word, certificate="none"), site="alder", study=STUDY, root=root)


def test_a_damaged_file_says_that_the_study_must_be_accepted_anew(word: Acceptance):
    whole = to_json(word)
    assert from_json(whole) == word
    lacking = json.dumps({key: text for key, text in asdict(word).items() if key != "certificate"})
    for damaged in (b"", whole[:-20], b"\xff" + whole, b"[]", b"null", lacking.encode()):
        with pytest.raises(BadSite, match="accept the study anew"):
            from_json(damaged)


def test_nothing_is_signed_with_a_key_that_cannot_be_read(authority: Authority, tmp_path: Path):
    key, certificate = authority.issue("alder", tmp_path)
    key.write_text("no key")
    with pytest.raises(BadSite, match=r"client\.key: cannot be read as a private key"):
        accept(STUDY, key, certificate)


def test_a_key_of_another_certificate_signs_nothing_that_counts(
    authority: Authority, root: Path, tmp_path: Path
):
    key, _ = authority.issue("alder", tmp_path / "one")
    _, certificate = authority.issue("alder", tmp_path / "two")
    with pytest.raises(BadSite, match="not valid"):
        check_acceptance(accept(STUDY, key, certificate), site="alder", study=STUDY, root=root)


def test_what_leaves_is_signed_in_words_and_a_changed_word_does_not_count(
    authority: Authority, root: Path, tmp_path: Path
):
    policy = ("in each of 3 rounds: the groups encoder", "no image, no path")
    word = accept(STUDY, *authority.issue("alder", tmp_path), policy)
    check_acceptance(word, site="alder", study=STUDY, root=root)
    for changed in ((), policy[:1], (policy[0].replace("3", "9"), policy[1])):
        with pytest.raises(BadSite, match="not valid"):
            check_acceptance(replace(word, policy=changed), site="alder", study=STUDY, root=root)


def test_an_acceptance_from_before_code_could_be_named_counts_and_is_written_to_the_same_bytes():
    data = (BEFORE / "alder.json").read_bytes()
    word = from_json(data)
    check_acceptance(word, site="alder", study=STUDY, root=BEFORE / "rootCA.pem")
    assert to_json(word) == data
    assert word.statement.decode() == (
        f"alder takes part in the study {STUDY} ({word.time})\n"
        "in each of 3 rounds: the groups encoder\nno image, no path"
    )


def test_code_is_signed_in_words_and_other_code_does_not_count(
    authority: Authority, root: Path, tmp_path: Path
):
    word = accept(STUDY, *authority.issue("alder", tmp_path), ("no image",), CODE)
    assert word.statement.decode() == (
        f"alder takes part in the study {STUDY} with\n"
        f"  our_methods:MRMTL of our-methods 0.3.1 (SHA-256 {'5be1' * 16} of its files)\n"
        f"  monai.networks.nets:SegResNet of monai 1.6.1 (SHA-256 {'4337' * 16} of its files)\n"
        f"({word.time})\nno image"
    )
    assert from_json(to_json(word)) == word
    check_acceptance(word, site="alder", study=STUDY, root=root)
    for changed in ((), CODE[:1], CODE[::-1], (replace(CODE[0], version="0.3.2"), CODE[1])):
        with pytest.raises(BadSite, match="not valid"):
            check_acceptance(replace(word, code=changed), site="alder", study=STUDY, root=root)


def test_acceptances_are_listed_and_one_is_withdrawn_by_its_first_digits(
    authority: Authority, tmp_path: Path
):
    kit = authority.issue("alder", tmp_path)
    for study, time in ((ANOTHER, "2026-02"), (STUDY, "2026-01")):
        save_acceptance(replace(accept(study, *kit), time=time), tmp_path)
    assert [each.study for each in list_acceptances(tmp_path)] == [STUDY, ANOTHER]
    for unknown in ("", "c", ANOTHER + "b"):
        with pytest.raises(BadSite, match="is not one of the accepted studies"):
            withdraw_acceptance(unknown, tmp_path)
    assert withdraw_acceptance("aaaa", tmp_path).study == STUDY
    assert load_acceptance(STUDY, tmp_path) is None
    assert [each.study for each in list_acceptances(tmp_path)] == [ANOTHER]
