"""How a site's volumes were scanned: read beside the cache, counted, kept for later use."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from grandrounds.core.errors import BadFolder, BadImage
from grandrounds.data.acquisition import Acquisition, ScanProtocol, sidecar_of
from grandrounds.data.cohort import Cohort, Session, data_digest
from grandrounds.data.protocol import (
    protocol_of,
    protocols_from_text,
    protocols_to_text,
    simulated_protocols,
    usual_protocols,
)
from grandrounds.data.simulation.simulate import Scanner
from grandrounds.runs.site_data import open_named, open_sites
from grandrounds.study.file import parse_study
from grandrounds.study.study import Study
from tests.conftest import SaveVolume
from tests.helpers.federation import tiny

SPIN_ECHO = {"SequenceFamily": "spin-echo", "RepetitionTime": 4.5, "EchoTime": 0.1}
CASES = ("sub-1", "sub-2", "sub-3")
IMAGE = np.zeros((1, 2, 4, 4), np.float32)


def study(codes: str = "protocol") -> Study:
    return parse_study(
        {
            "name": "one",
            "elements": {
                "contrasts": ["T1w", "T2w"],
                "size": [32, 32],
                "spacing": [1.0, 1.0],
                "split": {"train": 0.5, "validation": 0.0, "test": 0.5},
            },
            "task": {"model": "small", "codes": codes},
            "method": {"kind": "pflsynth"},
            "site": [{"name": "alder", "tasks": ["T1w->T2w"]}],
        }
    )


@pytest.fixture
def alder(tmp_path: Path, save_volume: SaveVolume, head: np.ndarray) -> Path:
    """A site of three patients without sidecars, and its file."""
    for place, case in enumerate(CASES):
        for factor, contrast in enumerate(("T1w", "T2w"), start=1):
            path = tmp_path / "alder" / f"{case}_{contrast}.nii"
            save_volume(path, head * factor + place, np.diag([2.0, 0.5, 3.0, 1.0]))
    file = tmp_path / "alder.toml"
    file.write_text('name = "alder"\ndata = "alder"\ncache = "cache"\n')
    return file


def describe(file: Path, case: str, contrast: str, **values: object) -> None:
    volume = file.parent / "alder" / f"{case}_{contrast}.nii"
    sidecar_of(volume).write_text(json.dumps(values))


def opened(file: Path, codes: str = "protocol") -> tuple[Cohort, list[str]]:
    [(cohort, summary)] = open_named(study(codes), [file])
    return cohort, [str(note) for note in summary.notes]


def scans(cohort: Cohort, contrast: str) -> dict[str, ScanProtocol]:
    return {session.patient: session.protocols[contrast] for session in cohort}


def test_each_session_is_coded_by_its_own_sidecar_and_its_own_voxels(alder: Path):
    describe(alder, "sub-1", "T2w", **SPIN_ECHO)
    describe(alder, "sub-2", "T2w", **{**SPIN_ECHO, "EchoTime": 0.08})
    found = scans(opened(alder)[0], "T2w")
    known = ScanProtocol(Acquisition("spin-echo", 4500.0, 100.0), thickness=3.0, pixel=1.0)
    assert found["sub-1"] == known
    assert found["sub-2"].acquisition.echo_time == 80.0
    assert found["sub-3"] == replace(known, acquisition=Acquisition())


def test_a_changed_sidecar_is_noticed_and_no_image_is_prepared_again(alder: Path):
    describe(alder, "sub-1", "T2w", **SPIN_ECHO)
    before, _ = opened(alder)
    kept = {path: path.stat().st_mtime_ns for path in (alder.parent / "cache").rglob("*")}
    describe(alder, "sub-1", "T2w", **{**SPIN_ECHO, "EchoTime": 0.05})
    after, _ = opened(alder)
    assert scans(after, "T2w")["sub-1"].acquisition.echo_time == 50.0
    assert data_digest([before]) != data_digest([after])
    assert kept == {path: path.stat().st_mtime_ns for path in (alder.parent / "cache").rglob("*")}


def test_to_a_study_that_reads_no_protocol_a_sidecar_is_nothing(alder: Path):
    before, notes = opened(alder, "both")
    describe(alder, "sub-1", "T2w", **SPIN_ECHO)
    after, still = opened(alder, "both")
    assert data_digest([before]) == data_digest([after])
    assert notes == still
    assert not any(session.protocols for session in after)


def test_what_is_unknown_is_said_in_counts(alder: Path):
    describe(alder, "sub-1", "T1w", **SPIN_ECHO)
    describe(alder, "sub-2", "T1w", EchoTime=0.01, MagneticFieldStrength=15000)
    _, notes = opened(alder)
    assert [note for note in notes if "T1w" in note] == [
        "T1w: 1 of 3 volumes have no sidecar that says how they were acquired, so their protocol "
        "code is that of an unknown scanner",
        "T1w: 1 of 3 volumes have a sidecar without the sequence family",
    ]
    assert [note[:20] for note in notes if "T2w" in note] == ["T2w: 3 of 3 volumes "]
    assert "1 value in sidecars cannot be: taken as unknown" in notes


def test_a_note_bears_no_name_but_the_study_s(alder: Path):
    describe(alder, "sub-1", "T1w", PatientName="Doe^Jane", SeriesDescription="Dr Roe's own")
    [(_, summary)] = open_named(study(), [alder])
    told = [note.told(study().names) for note in summary.notes]
    assert len([note for note in told if note and "sidecar" in note]) == 2
    assert not any(word in str(told) for word in ("Doe", "Roe", "sub-1"))


def test_a_sidecar_that_is_none_is_refused_where_it_is_read(alder: Path):
    sidecar_of(alder.parent / "alder" / "sub-2_T1w.nii").write_text("[1, 2]")
    with pytest.raises(BadImage, match=r"sub-2_T1w\.json: is no sidecar"):
        opened(alder)


def test_a_simulated_scanner_says_how_it_scans():
    coded = tiny("task.codes=protocol", sites=2)
    for spec, data in zip(coded.site, open_sites(coded, ()).values(), strict=True):
        [cohort] = data.cohorts
        found = {repr(session.protocols) for session in cohort}
        expected = simulated_protocols(spec.scanner, coded.elements, spec.slices)
        assert found == {repr(expected)}
    t1w = simulated_protocols(Scanner(), coded.elements, 4)["T1w"]
    acquisition = Acquisition("spin-echo", 500.0, 12.0, field_strength=1.5)
    assert t1w == ScanProtocol(acquisition, thickness=16.0, pixel=7.0)
    assert simulated_protocols(Scanner(), coded.elements, 1)["T1w"].thickness is None


def test_what_is_usual_is_what_most_sessions_have_value_by_value():
    scanned = [
        ScanProtocol(Acquisition("spin-echo", 4000.0, 80.0), 3.0),
        ScanProtocol(Acquisition("spin-echo", 4500.0, 80.0), 3.0),
        ScanProtocol(Acquisition(None, 4500.0, 100.0), 5.0),
    ]
    sessions = [
        Session(f"p{place}", "", ("T1w", "T2w"), IMAGE, protocols={"T2w": each})
        for place, each in enumerate(scanned)
    ]
    usual = usual_protocols(sessions)
    assert usual == {"T2w": ScanProtocol(Acquisition("spin-echo", 4500.0, 80.0), 3.0)}
    assert usual_protocols(reversed(sessions)) == usual


def test_usual_protocols_are_read_as_they_were_written():
    usual = {"alder": {"T1w": ScanProtocol(Acquisition("mprage", 2000.0, dimensions=3), 1.0, 0.5)}}
    assert protocols_from_text(protocols_to_text(usual), "here") == usual


@pytest.mark.parametrize("text", ["", "[]", '{"alder": 1}', '{"alder": {"T1w": {"pixel": "1"}}}'])
def test_damaged_usual_protocols_are_refused(text: str):
    with pytest.raises(BadFolder, match="here: is damaged"):
        protocols_from_text(text, "here")


def test_a_volume_without_a_sidecar_is_taken_to_be_as_usual_but_for_its_voxels(alder: Path):
    volume = alder.parent / "alder" / "sub-1_T2w.nii"
    usual = ScanProtocol(Acquisition("spin-echo", 4000.0), 9.0, 9.0)
    assert protocol_of(volume, usual) == ScanProtocol(usual.acquisition, 3.0, 1.0)
    describe(alder, "sub-1", "T2w", **SPIN_ECHO)
    own = protocol_of(volume, usual)
    assert own
    assert own.acquisition.repetition_time == 4500.0
    assert protocol_of(volume, None) is None
