"""What a failure card tells, and what stays with the site."""

import errno
import pickle
import re
import zlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from grandrounds.core.errors import BadImage, BadSite
from grandrounds.core.failures import Disclosure, failure_card
from grandrounds.core.messages import Train
from grandrounds.core.sentence import Name, Reason, Sentence, phrase
from grandrounds.data.cohort import split_patients
from grandrounds.data.elements import Fractions
from grandrounds.runs.site_data import open_sites
from grandrounds.study.site_file import SiteFile
from grandrounds.study.study import SiteSpec, Study
from tests.conftest import SaveVolume
from tests.helpers.federation import tiny

ORDER = Train(round=3, since=2)
NAMES = frozenset({"oak", "T1w", "T1w->T2w"})
OAK = Disclosure("oak", NAMES)
LOG = "see the log of site 'oak'"


class AnnaMusterError(OSError):
    """A class that a program made from a name."""


@pytest.mark.parametrize(
    ("error", "kind", "told"),
    [
        (ValueError("sub-07"), "ValueError", LOG),
        (OSError(errno.ENOSPC, "sub-07", "sub-07"), "OSError", f"No space left on device; {LOG}"),
        (OSError(errno.EFBIG, "sub-07"), "OSError", f"File too large; {LOG}"),
        (FileNotFoundError(2, "x"), "FileNotFoundError", f"No such file or directory; {LOG}"),
        (OSError("sub-07", "sub-07"), "OSError", LOG),
        (OSError(123456, "sub-07"), "OSError", f"an unknown reason; {LOG}"),
        (AnnaMusterError(), "OSError", LOG),
        (torch.OutOfMemoryError("sub-07"), "OutOfMemoryError", f"memory ran out; {LOG}"),
        (zlib.error("sub-07"), "error", LOG),
        (BadImage("sub-07"), "BadImage", f"an image at the site cannot be used; {LOG}"),
        (BadSite("sub-07", safe=phrase("no {n}", n=Name("T1w"))), "BadSite", f"no T1w; {LOG}"),
        (
            BadSite("sub-07", safe=phrase("no {n}", n=Name("sub-07"))),
            "BadSite",
            f"the site file, or the data that it names, cannot be used; {LOG}",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else type(value).__name__,
)
def test_others_are_told_the_class_and_what_is_safe(error: Exception, kind: str, told: str):
    card = OAK.card(ORDER, error)
    assert (card.site, card.round, card.stage) == ("oak", 3, "train")
    assert (card.error, card.message) == (kind, told)


def test_a_site_that_reveals_its_failures_tells_the_whole():
    error = BadSite("sub-07 is odd", safe=phrase("odd"))
    assert replace(OAK, reveals=True).card(ORDER, error).message == "sub-07 is odd"


def test_others_see_the_lines_of_this_program_alone():
    with pytest.raises(BadSite) as raised:
        split_patients([], Fractions(), site="oak")
    [line] = OAK.card(ORDER, raised.value).trace
    assert re.fullmatch(r"data/cohort\.py:[0-9]+ split_patients", line)
    assert len(failure_card("oak", ORDER, raised.value, "").trace) == 2


@pytest.mark.parametrize(
    ("said", "told"),
    [
        (phrase("{n} of {x:g}", n=3, x=0.5), "3 of 0.5"),
        (phrase("a {all}", all=(Name("oak"), Name("T1w"))), "a oak, T1w"),
        (phrase("a {all}", all=(Name("oak"), Name("anna"))), None),
        (phrase("{part}: {part}", part=phrase("{n} left", n=1)), "1 left: 1 left"),
        (phrase("{part}", part=phrase("{name}", name=Name("anna"))), None),
        (phrase("({why})", why=Reason(errno.ENOSPC)), "(No space left on device)"),
        (phrase("{text}", text="anna"), None),  # pyright: ignore[reportArgumentType]
        (phrase("{text}", text=Path("anna")), None),  # pyright: ignore[reportArgumentType]
    ],
)
def test_a_sentence_is_told_if_the_study_has_its_names(said: Sentence, told: str | None):
    assert said.told(NAMES) == told


def test_a_note_says_all_at_the_site():
    assert str(phrase("{who} lacks {what}", who=Name("anna"), what=Name("T1w"))) == (
        "anna lacks T1w"
    )


def test_an_error_keeps_its_sentence_on_its_way_to_another_process():
    error = BadSite("sub-07", safe=phrase("no {n}", n=Name("T1w")))
    again = pickle.loads(pickle.dumps(error))
    assert (str(again), again.safe) == (str(error), error.safe)


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


def test_a_real_site_tells_names_of_the_study_alone(real: tuple[Study, SiteFile]):
    study, file = real
    disclosure = open_sites(study, [file])["oak"].disclosure
    assert disclosure == Disclosure("oak", frozenset({"oak", "T1w", "T2w", "T1w->T2w"}))


def test_a_real_site_may_reveal_its_failures(real: tuple[Study, SiteFile]):
    study, file = real
    opened = open_sites(study, [replace(file, reveal_failures=True)])
    assert opened["oak"].disclosure.reveals


def test_what_a_site_notes_of_its_data_has_no_name_of_a_file(
    real: tuple[Study, SiteFile], save_volume: SaveVolume
):
    study, file = real
    save_volume(file.data / "sub-muster_AnnaMuster.nii.gz", np.ones((32, 32, 6), np.float32))
    notes = open_sites(study, [file])["oak"].ready.notes
    assert "1 volume of contrasts outside of the study: left out" in notes
    assert "muster" not in " ".join(notes).lower()
