import os
from functools import partial
from pathlib import Path

import pytest

from grandrounds.core.errors import DiskFailed
from grandrounds.core.files import create_whole, remove, write_text

REFUSAL = "{path}: no table: {reason}"


@pytest.mark.parametrize("change", [partial(write_text, text="a"), remove])
def test_a_refusal_names_the_file_and_the_reason(change: partial[None], tmp_path: Path):
    path = tmp_path / "table.csv"
    path.mkdir()
    with pytest.raises(DiskFailed) as failed:
        change(path, refusal=REFUSAL)
    assert str(failed.value) == f"{path}: no table: Is a directory"
    assert list(tmp_path.iterdir()) == [path]


def make_bundle(out: Path) -> None:
    with create_whole(out) as folder:
        (folder / "docs").mkdir(parents=True)
        (folder / "docs" / "README.md").write_text("half")


def test_what_is_placed_is_flushed_before_it_appears(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def full(descriptor: int) -> None:
        raise OSError("no space")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="no space"):
        make_bundle(tmp_path / "bundle")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_is_flushed_after_its_file_has_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Else a power cut brings the older file back, or none."""
    path, flushed = tmp_path / "new" / "folder" / "table.csv", list[tuple[str, bool]]()

    def note(descriptor: int) -> None:
        flushed.append((Path(f"/proc/self/fd/{descriptor}").readlink().name, path.exists()))

    monkeypatch.setattr("os.fsync", note)
    write_text(path, "a")
    places = [place for place, _ in flushed]
    assert places == [tmp_path.name, "new", f".table.csv.{os.getpid()}.tmp", "folder"]
    assert [appeared for _, appeared in flushed] == [False, False, False, True]
