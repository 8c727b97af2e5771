"""A study across hospitals is read only after its code was looked up in installed packages."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from grandrounds.core.errors import BadFolder, BadStudy
from grandrounds.core.extensions import class_named, importing_only
from grandrounds.runs.folder import check_unchanged
from grandrounds.study.file import to_toml
from grandrounds.study.installed import code_named, code_of_study, look_up
from tests.helpers.federation import TINY, tiny
from tests.helpers.packages import WORD, lay_down, was_imported

EVIL = "from pathlib import Path\nPath(__file__).with_name('harm').touch()\n"


@pytest.fixture
def packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder with a package that has a method; the program runs beside it."""
    folder = tmp_path / "packages"
    folder.mkdir()
    monkeypatch.syspath_prepend(lay_down(folder))
    monkeypatch.chdir(tmp_path)
    yield folder
    sys.modules.pop("our_methods", None)


def test_a_study_is_looked_up_without_importing_its_code_and_then_read(packages: Path):
    unread = look_up(TINY, [f"method.kind={WORD}", "rounds=2"])
    [code] = unread.code
    assert (code.word, code.package) == (WORD, "our-methods")
    assert not was_imported(packages)
    study = unread.read()
    assert was_imported(packages)
    assert (study.method.kind, study.rounds) == (WORD, 2)
    assert code_of_study(study) == unread.code


def test_an_option_of_the_default_method_may_be_set_as_ever():
    unread = look_up(TINY, ["method.split=paper", "name=other"])
    assert unread.code == ()
    assert unread.read() == tiny("method.split=paper", "name=other")


@pytest.mark.parametrize("key", ["method.kind", "task.kind", "task.network", "task.loss"])
def test_wherever_a_study_may_name_code_a_file_beside_it_is_refused_and_not_run(
    key: str, packages: Path, monkeypatch: pytest.MonkeyPatch
):
    (Path.cwd() / "evil.py").write_text(EVIL)
    monkeypatch.setattr(sys, "path", ["", *sys.path])
    with pytest.raises(BadStudy, match=rf'{key} = "evil:Evil": evil is no installed package here'):
        look_up(TINY, [f"{key}=evil:Evil"])
    assert not (Path.cwd() / "harm").exists()


def test_what_was_not_looked_up_is_not_imported(packages: Path):
    """As a key would be that names code, and of which the lookup does not know yet."""
    with importing_only([]), pytest.raises(BadStudy, match="here a study cannot name any"):
        class_named("task.generator", WORD, object)
    assert not was_imported(packages)
    with importing_only([WORD]):
        assert class_named("task.generator", WORD, object).__name__ == "OurMethod"


def test_an_entry_point_is_read_by_its_word(packages: Path):
    points = f"[grandrounds.methods]\nours = {WORD}\n"
    lay_down(packages, points=points)
    unread = look_up(TINY, ["method.kind=ours"])
    assert [code.word for code in unread.code] == ["ours"]
    assert not was_imported(packages)
    assert unread.read().method.kind == "ours"


def test_the_words_of_every_task_and_method_of_the_house_have_no_code():
    assert code_named({"task": {"kind": "segmentation"}, "method": {"kind": "mrmtl"}}) == ()


def test_to_resume_a_run_imports_no_code_that_its_study_does_not_name(packages: Path):
    run = Path.cwd() / "run"
    run.mkdir()
    older = look_up(TINY, [f"method.kind={WORD}"])
    (run / "study.toml").write_text(to_toml(older.read()))
    sys.modules.pop("our_methods")
    (packages / "our_methods.imported").unlink()
    with pytest.raises(BadFolder, match=r"another study; changed: method\.kind\."):
        check_unchanged(run, tiny())
    assert not was_imported(packages)
