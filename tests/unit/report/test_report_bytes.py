"""What is made of a fixed folder is the same as ever: the page, the figures, the tables.

`digests.json` holds a SHA-256 of each file. A PNG counts by its pixels, wherever it stands: how
they are packed is no part of the report. A commit that changes a digest says why.
"""

import json
import platform
import re
from base64 import b64decode
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from hashlib import sha256
from io import BytesIO
from pathlib import Path

import matplotlib as mpl
import pytest
from PIL import Image

from grandrounds.report.page.html import write_report
from grandrounds.report.paper.publish import publish
from tests.helpers.command import program
from tests.helpers.run_folders import (
    ARMS,
    FEDAVG,
    PFLSYNTH,
    leave_out,
    real,
    run_folder,
    write_comparison,
    write_matrix,
    write_run,
)

WRITTEN = datetime(2026, 11, 29, tzinfo=UTC).timestamp()
STORED = json.loads(Path(__file__).with_name("digests.json").read_text())
EMBEDDED = re.compile(rb"data:image/png;base64,([A-Za-z0-9+/=]+)")


@pytest.fixture(autouse=True)
def journals_of_one_day(monkeypatch: pytest.MonkeyPatch) -> None:
    """The page names the day of its journal."""
    monkeypatch.setattr("grandrounds.core.journal.time.time", lambda: WRITTEN)


def richest(folder: Path) -> Path:
    """Four arms with two seeds, one of them often absent; a matrix, unseen sites, pictures."""
    main = replace(PFLSYNTH, drift=0.2, pictured=(2, 3))
    arms = [main, replace(FEDAVG, absent={"birch": (2, 5)}), *ARMS[2:]]
    write_comparison(folder, arms, seeds=(7, 8))
    for seed in (7, 8):
        plan = replace(main, seed=seed)
        write_matrix(run_folder(folder, plan.name, seed), plan)
        leave_out(folder, plan, "alder", alder=24.3)
        leave_out(folder, plan, "birch", birch=21.7)
    return folder


def of_real_patients(folder: Path) -> Path:
    return write_run(folder, real(PFLSYNTH))


def finished(folder: Path) -> Path:
    return write_run(folder, PFLSYNTH)


def begun(folder: Path) -> Path:
    return write_run(folder, PFLSYNTH, until=2)


FOLDERS: dict[str, Callable[[Path], Path]] = {
    "comparison": richest,
    "run": finished,
    "run of real patients": of_real_patients,
    "run after two rounds": begun,
}


def digest(path: Path) -> str:
    data = path.read_bytes()
    return pixels(data) if path.suffix == ".png" else sha256(without_packing(data)).hexdigest()


def without_packing(page: bytes) -> bytes:
    """The page with the digest of its pixels in the place of each picture."""
    return EMBEDDED.sub(lambda found: pixels(b64decode(found[1])).encode(), page)


def pixels(png: bytes) -> str:
    """The SHA-256 of a picture's mode, size and pixels."""
    with Image.open(BytesIO(png)) as image:
        head = f"{image.mode} {image.width} {image.height} ".encode()
        return sha256(head + image.tobytes()).hexdigest()


def digests(folder: Path, part: str) -> dict[str, str]:
    return {path.name: digest(path) for path in sorted((folder / part).glob("*"))}


def skip_where_drawn_otherwise() -> None:
    """Lines, letters and their last digits are the drawing library's."""
    here = {"matplotlib": mpl.__version__, "machine": platform.machine()}
    if here != STORED["drawn with"]:
        pytest.skip(f"figures: drawn with {here} here; the digests are of {STORED['drawn with']}")


@pytest.mark.slow
@pytest.mark.parametrize("name", FOLDERS)
def test_the_page_is_the_same_as_ever(name: str, tmp_path: Path):
    folder = FOLDERS[name](tmp_path / "folder")
    assert digest(write_report(folder)) == STORED["report.html"][name]


def test_the_page_with_pictures_of_real_patients_is_the_same_as_ever(tmp_path: Path):
    folder = of_real_patients(tmp_path / "folder")
    shown = digest(write_report(folder, include_images=True))
    assert shown == STORED["report.html"]["run of real patients, with images"]


@pytest.mark.slow
@pytest.mark.parametrize("name", FOLDERS)
def test_the_tables_are_the_same_as_ever(name: str, tmp_path: Path):
    folder = FOLDERS[name](tmp_path / "folder")
    publish(folder, figures=False)
    assert digests(folder, "tables") == STORED["tables"][name]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["comparison", "run"])
def test_the_figures_are_the_same_as_ever(name: str, tmp_path: Path):
    skip_where_drawn_otherwise()
    folder = FOLDERS[name](tmp_path / "folder")
    publish(folder)
    assert digests(folder, "figures") == STORED["figures"][name]


@pytest.mark.slow
def test_neither_the_time_zone_nor_the_order_of_sets_changes_anything(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    folder = richest(tmp_path / "elsewhere" / "folder")
    monkeypatch.setenv("TZ", "Pacific/Auckland")
    monkeypatch.setenv("PYTHONHASHSEED", "12345")
    done = program("report", folder, "--quiet")
    assert done.code == 0, done.err
    assert digest(folder / "report.html") == STORED["report.html"]["comparison"]
    assert digests(folder, "tables") == STORED["tables"]["comparison"]
    skip_where_drawn_otherwise()
    assert digests(folder, "figures") == STORED["figures"]["comparison"]
