"""What a failure card tells, and what stays with the site."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from grandrounds.core.failures import Redactor, failure_card, unredacted
from grandrounds.core.messages import Train
from grandrounds.runs.site_data import open_sites
from grandrounds.study.site_file import SiteFile
from grandrounds.study.study import SiteSpec, Study
from tests.conftest import SaveVolume
from tests.helpers.federation import tiny

REDACT = Redactor(frozenset({"sub-07", "Erika Muster", "sub-07 ses-1", "07"}))


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("cannot read /data/mri/sub-07/t1.nii.gz: gone", "cannot read [path]: gone"),
        ("'/data/with-dash/a.b'", "'[path]'"),
        ("(~/images/x) and ../up/x", "([path]) and [path]"),
        (r"C:\Patients\Muster, D:\x", "[path], [path]"),
        ("shape of sub-07 is (3, 4)", "shape of [patient] is (3, 4)"),
        ("Erika Muster, sub-07.", "[patient], [patient]."),
        ("sub-07 ses-1 differs", "[patient] differs"),
        ("sub-071 and 1070 are numbers", "sub-071 and 1070 are numbers"),
        ("slice 07 of 12", "slice [patient] of 12"),
        ("expected 3 channels, found 4", "expected 3 channels, found 4"),
        ("a or b, T1w->T2w", "a or b, T1w->T2w"),
    ],
)
def test_paths_and_patients_are_redacted_and_nothing_else(text: str, told: str):
    assert REDACT(text) == told


def test_a_simulated_site_tells_the_whole():
    assert unredacted("/data/sub-07") == "/data/sub-07"
    assert open_sites(tiny(sites=1), ())["alder"].redact is unredacted


def broken() -> Exception:
    try:
        raise MemoryError("of sub-07")
    except MemoryError as error:
        return error


def test_a_card_names_the_lines_without_any_path():
    order = Train(round=3, since=2)
    card = failure_card("alder", order, broken(), "redacted")
    assert (card.site, card.round, card.stage, card.error) == ("alder", 3, "train", "MemoryError")
    assert card.message == "redacted"
    assert card.hint.startswith("Lower training.batch_size")
    [line] = card.trace
    assert line.startswith("test_failures.py:")
    assert line.endswith(" broken")


def deep(times: int) -> None:
    if times == 0:
        raise ValueError("bottom")
    deep(times - 1)


def test_a_card_shows_the_innermost_lines_of_a_long_trace():
    with pytest.raises(ValueError, match="bottom") as raised:
        deep(40)
    trace = failure_card("a", Train(round=1, since=0), raised.value, "").trace
    assert len(trace) == 12
    assert {line.partition(":")[0] for line in trace} == {"test_failures.py"}


@pytest.fixture
def real(tmp_path: Path, save_volume: SaveVolume) -> tuple[Study, SiteFile]:
    """A study of one real site with three patients."""
    voxels = np.random.default_rng(1).uniform(10, 100, (32, 32, 6)).astype(np.float32)
    for patient in ("sub-muster", "sub-doe", "sub-roe", "sub-poe"):
        for contrast in ("T1w", "T2w"):
            save_volume(tmp_path / "data" / f"{patient}_{contrast}.nii.gz", voxels)
    study = tiny()
    elements = replace(study.elements, contrasts=("T1w", "T2w"), size=(32, 32), spacing=(1.0, 1.0))
    study = replace(study, elements=elements, site=(SiteSpec("oak", ("T1w->T2w",)),))
    return study, SiteFile("oak", tmp_path / "data", tmp_path / "cache")


def said(study: Study, file: SiteFile, text: str) -> str:
    redact: Callable[[str], str] = open_sites(study, [file])["oak"].redact
    return redact(text)


def test_a_real_site_keeps_paths_and_its_own_names_of_patients(real: tuple[Study, SiteFile]):
    study, file = real
    text = f"sub-muster: {file.data}/sub-muster/x.nii.gz is odd"
    assert said(study, file, text) == "[patient]: [path] is odd"


def test_a_real_site_may_reveal_its_failures(real: tuple[Study, SiteFile]):
    study, file = real
    text = f"sub-muster: {file.data}/sub-muster/x.nii.gz is odd"
    assert said(study, replace(file, reveal_failures=True), text) == text
