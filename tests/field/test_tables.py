"""Tables of patients, and study and site files, as other programs write them."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.field.conftest import Verdict
from tests.helpers.command import Done

Judge = Callable[..., Verdict]
Ask = Callable[..., Done]
Made = Callable[[str], Path]


@pytest.mark.parametrize(("folder", "first"), [("a", "01"), ("b", "sub-001"), ("c", "subj-01")])
def test_ids_that_are_not_those_of_the_files_are_shown_beside_them(
    judged: Judge, folder: str, first: str
):
    sentence = judged("18", folder).refused
    assert "participants.tsv: no row names a patient of the folder" in sentence
    assert f"the table has {first}, " in sentence
    assert "the files sub-01, " in sentence


def test_patients_without_a_row_and_rows_without_a_patient_are_counted_and_named(judged: Judge):
    fewer, more = judged("18", "d").notes, judged("18", "e").notes
    assert "4 patients without a row in participants.tsv" in fewer
    assert "without a row: sub-01, sub-02, sub-03, sub-04" in fewer
    assert "2 rows of participants.tsv without a volume" in more
    assert "without a volume: sub-77, sub-78" in more


@pytest.mark.parametrize("folder", ["cr", "crlf-bom", "u2028", "vtab", "nel", "blank", "upper"])
def test_a_line_is_a_row_whatever_its_cells_hold(judged: Judge, folder: str):
    verdict = judged("20", folder)
    assert len(verdict.sessions) == 12, verdict.refused
    assert {s.values["age"] for s in verdict.sessions.values()} == set(range(41, 53))


@pytest.mark.parametrize(
    ("folder", "words"),
    [
        ("NA", "line 6 has age = 'NA'"),
        ("underscore", "line 6 has age = '4_0'"),
        ("comma", "line 6 has age = '40,5'"),
        ("thousand", "line 6 has age = '1,200'"),
        ("blank-middle", "line 11 has age = 'old'"),
        ("twice", "line 14 names a patient of an earlier row"),
        ("semicolon", "its cells are kept apart by semicolons"),
        ("utf16", "it is in UTF-16"),
        ("txt", "patients.txt: is a file of an unknown kind"),
    ],
)
def test_what_is_wrong_in_a_table_is_named_by_its_line(judged: Judge, folder: str, words: str):
    sentence = judged("20", folder).refused
    assert words in sentence
    assert "NIfTI volumes in" not in sentence


@pytest.mark.parametrize(
    ("folder", "name"),
    [("min", "rate [/min]"), ("unit", "chol [mg/dl]"), ("plain", "chol (mg/dl)")],
)
def test_brackets_in_names_are_printed_as_they_are(ask: Ask, made: Made, folder: str, name: str):
    done = ask(made("21") / folder, "check", "study.toml", "--site", "alder.toml")
    assert (done.code, done.err) == (0, "")
    assert f"lacks {name}: " in done.out
    assert f"│ {name} " in done.out


def test_a_byte_order_mark_and_other_line_ends_are_no_part_of_a_file(judged: Judge):
    for folder in ("study-bom", "site-bom", "crlf"):
        assert len(judged("22", folder).sessions) == 4


def test_a_site_file_that_cannot_be_read_says_how_to_write_it(judged: Judge):
    assert "save it as UTF-8" in judged("22", "utf16").refused
    assert "single quotes" in judged("22", "backslash").refused
    tilde = judged("22", "tilde").refused
    assert tilde.startswith(f"{Path.home()}/mri: ")


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("two.npz", "--least", "0", "--out", "afile"), "afile: cannot be made into a folder"),
        (
            ("two.npz", "--least", "0", "--out", "afile/below"),
            "afile/below: cannot be made into a folder",
        ),
        (("rare.npz",), "fewer than --least 10"),
        (("strings.npz",), "each value must be a number"),
        (("objects.npz",), "plain arrays"),
        (("empty.npz",), "(N, H, W)"),
        (("scalar.npz",), "one value for each"),
        (("image2d.npz",), "(N, H, W)"),
        (("two.npz", "--alpha", "nan"), "alpha"),
    ],
)
def test_a_dataset_is_dealt_or_refused_in_one_sentence(
    ask: Ask, made: Made, words: tuple[str, ...], sentence: str
):
    here = made("24")
    shutil.rmtree(here / "new", ignore_errors=True)
    done = ask(here, "partition", "--variable", "ill", "--out", "new", *words)
    assert (done.code, done.out) == (2, "")
    assert sentence in done.err
    assert len(done.err.splitlines()) == 1
    assert (here / "afile").read_text() == "mine"
    assert not (here / "new").exists()


@pytest.mark.parametrize("file", ["two.npz", "eight.npz"])
def test_a_very_small_alpha_deals_all_or_says_why_not(
    ask: Ask, made: Made, tmp_path: Path, file: str
):
    words = ("--variable", "ill", "--alpha", "1e-9", "--least", "0", "--json")
    done = ask(made("24"), "partition", file, *words, "--out", tmp_path / "dealt")
    assert done.code in (0, 2), done.err
    assert "nan" not in (done.out + done.err).lower()
    assert "Traceback" not in done.err


def test_a_patient_at_two_sites_is_told(judged: Judge):
    notes = judged("28", sites=("alder", "birch")).notes
    told = [note for note in notes if note.startswith("10 patients here have the ID of a patient")]
    assert len(told) == 2
    assert all("are tested at another" in note for note in told)


@pytest.mark.parametrize(("folder", "value"), [("one-two", "2"), ("half", "0.5")])
def test_check_refuses_findings_that_a_run_would_refuse(judged: Judge, folder: str, value: str):
    assert f"a patient's ms is {value}; classification needs 0 or 1" in (
        judged("38", folder).refused
    )


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("elements.spacing=[6.0, nan]", "elements.spacing[1] = "),
        ("elements.spacing=[inf, 6.0]", "elements.spacing[0] = "),
        ("elements.spacing=[0.006, 0.006]", "it is in millimetres"),
        ("training.learning_rate=inf", "training.learning_rate = "),
        ("training.betas=[nan, 0.9]", "training.betas[0] = "),
        ("elements.split={train=nan, validation=0.1, test=0.9}", "elements.split.train = "),
        ('name="../x"', "study name '../x'"),
        ('name="/elsewhere/x"', "study name '/elsewhere/x'"),
        ("task.sizes=3", "unknown key 'task.sizes'"),
        ("task.metric=psnr", "unknown key 'task.metric'"),
    ],
)
def test_what_is_no_number_and_no_key_is_refused(ask: Ask, made: Made, override: str, words: str):
    done = ask(made("37"), "check", "study.toml", "--set", override)
    assert (done.code, done.out) == (2, "")
    assert words in done.err
