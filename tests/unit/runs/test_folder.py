"""A run's folder belongs to one study, also when a later version has more keys."""

import tomllib
from pathlib import Path

import pytest
import tomli_w

from grandrounds.core.errors import BadFolder
from grandrounds.runs.folder import check_unchanged
from grandrounds.study.file import to_table
from tests.helpers.federation import tiny


def noted(folder: Path, *without: str) -> Path:
    """A folder whose study was written before the keys `without` existed."""
    table = to_table(tiny())
    for key in without:
        *parents, last = key.split(".")
        inner = table
        for parent in parents:
            inner = inner[parent]
        del inner[last]
    (folder / "study.toml").write_text(tomli_w.dumps(table))
    return folder


def test_a_run_begun_before_a_key_existed_goes_on_with_its_default(tmp_path: Path):
    noted(tmp_path, "holdout_sites", "task.masked")
    check_unchanged(tmp_path, tiny())


def test_a_run_begun_before_a_key_existed_is_not_resumed_with_another_value(tmp_path: Path):
    noted(tmp_path, "task.masked")
    with pytest.raises(BadFolder, match=r"another study; changed: task\.masked\. Resume with"):
        check_unchanged(tmp_path, tiny("task.masked=brain"))


def test_the_note_of_the_study_is_left_as_it_was(tmp_path: Path):
    before = (noted(tmp_path, "holdout_sites") / "study.toml").read_text()
    check_unchanged(tmp_path, tiny())
    after = (tmp_path / "study.toml").read_text()
    assert before == after
    assert "holdout_sites" not in tomllib.loads(after)
