"""From a folder to volumes: a second run does what is missing, and nothing derived names anyone."""

import gzip
import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pydicom
import pytest
from nibabel.nifti1 import Nifti1Extension
from pydicom.uid import UID

from grandrounds.core.errors import BadSite
from grandrounds.data.archive import ingest as ingesting
from grandrounds.data.archive.ingest import ingest
from grandrounds.data.archive.overview import ArchiveOverview, read_overview
from grandrounds.data.archive.settings import Access, Archive, placed
from grandrounds.data.archive.states import CaseTable
from grandrounds.data.dicom.contrast import ContrastRule
from grandrounds.data.dicom.parser import Limits
from grandrounds.data.session_files import find_sessions
from tests.helpers.dicom_hospital import Visit, hospital, pictures, save_visit

FIRST, AGAIN, OTHER = hospital(2)
ONE = Limits(processes=1)
pytestmark = pytest.mark.slow


def silent(what: str, done: int, total: int) -> None:
    pass


def bring(archive: Archive) -> ArchiveOverview:
    ingest(archive, silent, ONE)
    return read_overview(archive)


def archive_in(folder: Path, **options: object) -> Archive:
    plain = Archive(Path("volumes"), Path("archive"), identified=True)
    return placed(replace(plain, **options), folder)  # pyright: ignore


@pytest.fixture(scope="module")
def ingested(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of three visits of two patients, ingested; tests take copies."""
    folder = tmp_path_factory.mktemp("hospital")
    for visit in (FIRST, AGAIN, OTHER):
        save_visit(folder / "archive" / "by day" / visit.day, visit, ("T1w", "FLAIR"))
    (folder / "archive" / "readme").write_text("Dulcinea")
    bring(archive_in(folder))
    return folder


@pytest.fixture
def copied(ingested: Path, tmp_path: Path) -> Path:
    shutil.copytree(ingested, tmp_path / "site", copy_function=shutil.copy2)
    return tmp_path / "site"


def volumes_of(folder: Path) -> Mapping[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted((folder / "volumes").iterdir())}


def test_every_series_becomes_a_volume_with_the_voxels_of_its_files(ingested: Path):
    found = read_overview(archive_in(ingested))
    assert found.states == dict.fromkeys(found.states, 0) | {"checked": 6}
    assert (found.kind, found.patients, found.sessions) == ("DICOM files", 2, 3)
    assert found.left_out == {"files that are no DICOM image": 1}
    sessions = find_sessions(ingested / "volumes")
    assert sorted({s.session for s in sessions}) == ["ses-1", "ses-2"]
    assert {tuple(sorted(s.contrasts)) for s in sessions} == {("FLAIR", "T1w")}
    [once] = [s for s in sessions if [t.patient for t in sessions].count(s.patient) == 1]
    image = nib.load(once.contrasts["T1w"])  # pyright: ignore
    voxels = np.asarray(image.dataobj)  # pyright: ignore
    expected = pictures(OTHER.patient, 32, 6)["T1w"]
    assert np.array_equal(voxels.transpose(2, 1, 0), expected)
    assert np.allclose(image.header.get_zooms(), (6, 6, 9.6))  # pyright: ignore


def test_a_sidecar_holds_the_acquisition_and_the_table_age_and_sex(ingested: Path):
    volumes = ingested / "volumes"
    sidecar = json.loads(next(volumes.glob("*FLAIR.json")).read_text())
    assert sidecar["InversionTime"] == 2.5
    assert set(sidecar) <= {
        *("Modality", "Manufacturer", "RepetitionTime", "EchoTime", "InversionTime", "FlipAngle"),
        *("MagneticFieldStrength", "SequenceFamily", "MRAcquisitionType"),
    }
    rows = (volumes / "participants.tsv").read_text().splitlines()
    assert rows[0] == "participant_id\tage\tsex"
    assert sorted(row.split("\t")[1:] for row in rows[1:]) == [["65", "M"], ["72", "F"]]


def derived(folder: Path) -> Iterator[tuple[str, bytes]]:
    """All that leaves the private folder, unpacked, and what the table tells."""
    for path in sorted((folder / "volumes").iterdir()):
        content = path.read_bytes()
        yield path.name, path.name.encode() + content
        if path.suffix == ".gz":
            yield path.name, gzip.decompress(content)
    told = read_overview(archive_in(folder))
    yield "the table", repr(told).encode()


@pytest.mark.parametrize("visit", [FIRST, AGAIN, OTHER], ids=["first", "again", "other"])
def test_no_identifying_value_is_in_anything_derived(visit: Visit, ingested: Path):
    for where, content in derived(ingested):
        for secret in visit.secrets:
            for form in (secret.encode(), secret.upper().encode(), secret.encode("utf-16-le")):
                assert form not in content, (where, secret)


def test_nobody_else_reads_the_private_folder(ingested: Path):
    private = ingested / "volumes-private"
    assert private.stat().st_mode & 0o777 == 0o700
    assert (private / "pseudonyms.key").stat().st_mode & 0o777 == 0o600
    assert (private / "cases.sqlite").stat().st_mode & 0o777 == 0o600
    assert not list((private / "converted").iterdir())


def no_parser(*_: object) -> None:
    raise AssertionError("a file was parsed again")


def test_a_second_run_parses_nothing_and_changes_nothing(copied: Path, monkeypatch):
    before = volumes_of(copied)
    moved = archive_in(copied)
    monkeypatch.setattr(ingesting, "convert_files", no_parser)
    # The copy lies elsewhere, so its headers are read anew; its series are the same.
    assert bring(moved).states["checked"] == 6
    monkeypatch.setattr("grandrounds.data.dicom.parse.DicomReader.headers", no_parser)
    assert bring(moved).states["checked"] == 6
    assert volumes_of(copied) == before


def test_what_changed_is_done_again_and_only_that(copied: Path, monkeypatch):
    archive = archive_in(copied)
    bring(archive)
    done: list[str] = []
    convert = ingesting.convert_files
    monkeypatch.setattr(
        ingesting, "convert_files", lambda r, c, p: (done.append(c.id), convert(r, c, p))[1]
    )
    gone = sorted((copied / "archive").rglob("*FLAIR-005"))[0]
    gone.unlink()
    next((copied / "volumes").glob("*T1w.nii.gz")).unlink()
    found = bring(archive)
    assert len(done) == 2
    assert found.states["checked"] == 6
    shapes = {nib.load(p).shape for p in (copied / "volumes").glob("*.gz")}  # pyright: ignore
    assert shapes == {(32, 32, 6), (32, 32, 5)}


@pytest.mark.full
def test_what_is_taken_out_of_the_archive_is_taken_out_of_the_volumes(copied: Path):
    archive = archive_in(copied)
    bring(archive)
    shutil.rmtree(copied / "archive" / "by day" / OTHER.day)
    found = bring(archive)
    assert [c.reason for c in found.of_state("refused")] == [
        "is no longer in the archive: its volume was removed"
    ] * 2
    assert len(find_sessions(copied / "volumes")) == 2


def test_identified_files_are_refused_and_taken_once_they_are_allowed(tmp_path: Path):
    save_visit(tmp_path / "archive", FIRST, ("T1w",))
    strict = archive_in(tmp_path, identified=False)
    with pytest.raises(BadSite, match=r"6 of its files name the patient.*write identified = true"):
        bring(strict)
    assert not list((tmp_path / "volumes").iterdir())
    found = read_overview(strict)
    assert found.findings["identified"] == found.findings["name"] == 6
    assert found.states["refused"] == 1
    assert bring(archive_in(tmp_path)).states["checked"] == 1
    assert len(list((tmp_path / "volumes").iterdir())) == 3
    with pytest.raises(BadSite, match="name the patient"):
        bring(strict)  # it was allowed, and is not any more
    assert not list((tmp_path / "volumes").iterdir())


@pytest.mark.full
def test_files_that_were_de_identified_are_taken(tmp_path: Path):
    clean = {
        **dict.fromkeys(("AccessionNumber", "StudyID", "PatientBirthDate"), ""),
        "PatientIdentityRemoved": "YES",
        "PatientName": "anon",
    }
    save_visit(tmp_path / "archive", Visit(more=clean), ("T1w",))
    assert bring(archive_in(tmp_path, identified=False)).states["checked"] == 1


def test_of_two_series_of_a_contrast_the_better_is_taken_and_the_other_is_named(tmp_path: Path):
    derived_ = {"ImageType": ["DERIVED", "SECONDARY", "M"]}
    save_visit(tmp_path / "archive" / "a", Visit(more=derived_), ("T1w",))
    again = {"SeriesInstanceUID": f"{FIRST.study}.77"}
    for path in save_visit(tmp_path / "archive" / "b", Visit(more=again), ("T1w",)):
        rename_instance(path)
    found = bring(archive_in(tmp_path))
    [aside] = found.of_state("set aside")
    [taken] = found.of_state("checked")
    assert aside.reason.startswith(f"{taken.output} is the better one of its contrast (not derived")
    assert (aside.session, aside.contrast) == (taken.session, "T1w") == ("ses-1", "T1w")
    assert len(list((tmp_path / "volumes").glob("*.gz"))) == 1


def rename_instance(path: Path) -> None:
    made = pydicom.dcmread(path)
    made.SOPInstanceUID = made.file_meta.MediaStorageSOPInstanceUID = UID(
        f"{made.SOPInstanceUID}.7"
    )
    made.save_as(path)


@pytest.mark.full
def test_a_rule_of_the_site_decides_and_a_corrected_one_corrects_the_name(tmp_path: Path):
    save_visit(tmp_path / "archive", FIRST, ("T1w",))
    bring(archive_in(tmp_path))
    rule = (ContrastRule("*rocinante", "T2w"),)
    [case] = bring(archive_in(tmp_path, contrast=rule)).cases
    assert (case.contrast, case.why, case.state) == ("T2w", "by a rule of the site", "checked")
    names = [path.name for path in (tmp_path / "volumes").glob("sub-*")]
    assert sorted(name.split("_")[-1] for name in names) == ["T2w.json", "T2w.nii.gz"]


@pytest.mark.full
def test_two_patients_in_one_series_are_refused_and_a_damaged_file_costs_itself(tmp_path: Path):
    paths = save_visit(tmp_path / "archive", FIRST, ("T1w", "FLAIR"))
    mixed = pydicom.dcmread(paths[0])
    mixed.PatientID = "PID-666"
    mixed.save_as(paths[0])
    bad = tmp_path / "archive" / "bad"
    bad.write_bytes(paths[1].read_bytes()[:-200])
    found = bring(archive_in(tmp_path))
    reasons = sorted(case.reason for case in found.of_state("refused"))
    assert reasons[1] == "its files are of more than one patient"
    assert reasons[0].startswith("a file ")
    assert found.states["checked"] == 1


def test_a_patient_has_one_name_in_dicom_and_in_a_bids_tree(copied: Path, save_volume):
    patient, voxels = FIRST.patient, np.ones((4, 4, 4), np.float32)
    (copied / "bids" / f"sub-{patient}" / "anat").mkdir(parents=True)
    save_volume(copied / "bids" / f"sub-{patient}" / "anat" / f"sub-{patient}_T2w.nii.gz", voxels)
    private = copied / "volumes-private"
    other = placed(Archive(Path("others"), Path("bids"), private=private), copied)
    found = bring(other)
    [volume] = [case for case in found.cases if case.contrast == "T2w"]
    known = {case.patient for case in found.cases if case.contrast == "T1w"}
    assert volume.patient in known
    assert volume.session == "ses-3"


def test_a_nifti_volume_gets_a_new_header_and_a_sidecar_of_its_acquisition_alone(tmp_path: Path):
    anat = tmp_path / "archive" / "sub-77001" / "ses-b" / "anat"
    anat.mkdir(parents=True)
    image = nib.Nifti1Image(np.arange(60, dtype=np.int16).reshape(3, 4, 5), np.diag([2, 2, 3, 1]))
    image.header["descrip"] = b"Quixote"
    image.header.extensions.append(Nifti1Extension("comment", b"Dulcinea 77001"))
    nib.save(image, anat / "sub-77001_ses-b_T1w.nii.gz")  # pyright: ignore
    told = {"EchoTime": 0.01, "AcquisitionDateTime": "20190607", "PatientName": "Quixote"}
    (anat / "sub-77001_ses-b_T1w.json").write_text(json.dumps(told))
    (tmp_path / "archive" / "T1w.json").write_text('{"RepetitionTime": 0.5}')
    table = "participant_id\tage\tcity\nsub-77001\t95.5\tToboso\n"
    (tmp_path / "archive" / "participants.tsv").write_text(table)
    found = bring(archive_in(tmp_path, identified=False))
    assert (found.kind, found.states["checked"]) == ("a BIDS tree", 1)
    [volume] = (tmp_path / "volumes").glob("*.nii.gz")
    assert volume.name.endswith("_ses-1_T1w.nii.gz")
    written = nib.load(volume)  # pyright: ignore
    assert np.array_equal(written.get_fdata(), image.get_fdata())  # pyright: ignore
    assert np.allclose(written.affine, image.affine)  # pyright: ignore
    sidecar = json.loads(volume.with_name(volume.name.replace(".nii.gz", ".json")).read_text())
    assert sidecar == {"EchoTime": 0.01, "RepetitionTime": 0.5}
    rows = (tmp_path / "volumes" / "participants.tsv").read_text().splitlines()
    assert rows[1].split("\t")[1:] == ["90", "n/a"]
    for where, content in derived(tmp_path):
        for secret in (b"Quixote", b"Dulcinea", b"77001", b"Toboso", b"20190607", b"ses-b"):
            assert secret not in content, where


def plain_archive(folder: Path, save_volume) -> Archive:
    """Two visits, of which one has a contrast twice, and a key that is always the same."""
    for name in ("sub-1_ses-1_T1w", "sub-1_ses-1_run-2_T1w", "sub-1_ses-2_T2w"):
        place = folder / "archive" / "sub-1" / name.split("_")[1] / "anat" / f"{name}.nii.gz"
        save_volume(place, np.full((3, 3, 3 + len(name) % 2), 7, np.float32))
    archive = archive_in(folder)
    archive.private_folder.mkdir(mode=0o700)
    archive.key_file.write_bytes(bytes(32))
    archive.key_file.chmod(0o600)
    return archive


@pytest.mark.full
@pytest.mark.parametrize("when", ["before", "after"])
def test_a_stop_at_any_moment_loses_nothing(when: str, tmp_path: Path, save_volume, monkeypatch):
    bring(plain_archive(tmp_path / "whole", save_volume))
    whole, changing, stopped = volumes_of(tmp_path / "whole"), CaseTable._changing, 0
    assert len(whole) == 4

    for moment in range(100):
        left = [moment]

        @contextmanager
        def stopping(table: CaseTable, left=left) -> Iterator[None]:
            left[0] -= 1
            if left[0] == -1 and when == "before":
                raise KeyboardInterrupt
            with changing(table):
                yield
            if left[0] == -1 and when == "after":
                raise KeyboardInterrupt

        archive = plain_archive(tmp_path / str(moment), save_volume)
        monkeypatch.setattr(CaseTable, "_changing", stopping)
        with suppress(KeyboardInterrupt):
            bring(archive)
        monkeypatch.setattr(CaseTable, "_changing", changing)
        if left[0] >= 0:
            break
        stopped += 1
        bring(archive)
        assert volumes_of(tmp_path / str(moment)) == whole, moment
    assert stopped > 8


def test_a_second_run_at_the_same_time_is_refused(copied: Path):
    archive = archive_in(copied)
    with (
        ingesting._alone(archive),  # pyright: ignore
        pytest.raises(BadSite, match="another ingest is at work"),
    ):
        bring(archive)


def test_a_lost_key_is_not_made_anew(copied: Path):
    archive = archive_in(copied)
    archive.key_file.write_bytes(bytes(32))
    with pytest.raises(BadSite, match="is another key than the one"):
        bring(archive)
    archive.key_file.unlink()
    with pytest.raises(BadSite, match="the key of the pseudonyms is gone"):
        bring(archive)


def test_an_empty_folder_and_one_without_images_are_refused(tmp_path: Path):
    with pytest.raises(BadSite, match="No such file or directory"):
        bring(archive_in(tmp_path))
    (tmp_path / "archive").mkdir()
    with pytest.raises(BadSite, match="holds no file that could be an image"):
        bring(archive_in(tmp_path))
    (tmp_path / "archive" / "letter").write_text("no image")
    with pytest.raises(BadSite, match="no series was found"):
        bring(archive_in(tmp_path))


def test_the_settings_of_a_pacs_have_their_defaults():
    assert Access().retries == 4
