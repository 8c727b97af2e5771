"""A series over DICOMweb, from a server on a real socket: stopped, resumed, and not believed."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from pydicom.dataset import FileDataset

from grandrounds.core.errors import BadSite
from grandrounds.data.archive.ingest import ingest
from grandrounds.data.archive.overview import ArchiveOverview, read_overview
from grandrounds.data.archive.settings import Access, Archive, ArchiveQuery
from grandrounds.data.dicom.parser import Limits
from tests.helpers.dicom_hospital import Visit, dicom_files
from tests.helpers.web_pacs import BOUNDARY, Handler, Misbehaviour, WebPacs, web_pacs

pytestmark = pytest.mark.slow
VISIT = Visit()
PATIENCE = Access(timeout=5, retries=0, pause=0)


def files_of(visit: Visit, *contrasts: str) -> Sequence[FileDataset]:
    return [made for _, made in dicom_files(visit, contrasts, size=8, slices=4)]


def archive_of(server: WebPacs, folder: Path, **options: object) -> Archive:
    plain = Archive(folder / "volumes", url=server.url, identified=True, access=PATIENCE)
    return replace(plain, **options)  # pyright: ignore


def bring(archive: Archive) -> ArchiveOverview:
    ingest(archive, lambda what, done, total: None, Limits(processes=1))
    return read_overview(archive)


def fetched(folder: Path) -> list[Path]:
    return sorted((folder / "volumes-private" / "fetched").rglob("*.dcm"))


def test_the_run_after_a_cut_finishes_the_series_and_fetches_nothing_twice(tmp_path: Path):
    how = Misbehaviour(cut_after=2)
    with web_pacs(files_of(VISIT, "T1w"), how) as server:
        archive = archive_of(server, tmp_path)
        with pytest.raises(BadSite, match=r"1 series could not be fetched yet: http.*middle"):
            bring(archive)
        assert len(fetched(tmp_path)) == 2
        [case] = read_overview(archive).cases
        assert case.state == "found"
        how.cut_after = None
        assert bring(archive).states["checked"] == 1
        assert len(server.sent) == len(set(server.sent)) == 4
        asked = len(server.asked)
        assert bring(archive).states["checked"] == 1
        assert len(server.asked) == asked + 2  # its studies and series; none of its files
    assert fetched(tmp_path) == []


def test_what_a_killed_run_left_of_a_case_that_is_done_is_removed(tmp_path: Path):
    with web_pacs(files_of(VISIT, "T1w")) as server:
        archive = archive_of(server, tmp_path)
        [case] = bring(archive).cases
        left = [
            archive.private_folder / "fetched" / case.id / "part-000000.dcm",
            archive.private_folder / "converted" / f"{case.id}.nii.gz",
        ]
        for path in left:
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(b"Dulcinea")
        bring(archive)
    assert not [path for path in left if path.exists()]


@pytest.mark.full
def test_what_a_pacs_sent_stays_where_the_site_wishes_it(tmp_path: Path):
    with web_pacs(files_of(VISIT, "T1w")) as server:
        bring(archive_of(server, tmp_path, keep_fetched=True))
    assert len(fetched(tmp_path)) == 4
    assert fetched(tmp_path)[0].parent.stat().st_mode & 0o777 == 0o700
    assert VISIT.study not in str(fetched(tmp_path)[0])


def sending(others: Sequence[FileDataset]):
    """Send other files than were asked for."""

    def before(handler: Handler, path: str) -> bool:
        if "/series/" in path and not path.endswith(("/series", "/instances")):
            handler.parts(others)
            return True
        return False

    return Misbehaviour(before=before)


def test_another_patient_s_file_is_refused_and_removed(tmp_path: Path):
    other = files_of(Visit("PID-666", "Other^Patient"), "T1w")
    with web_pacs(files_of(VISIT, "T1w"), sending(other)) as server:
        archive = archive_of(server, tmp_path)
        with pytest.raises(BadSite, match="a file of another patient than was asked for"):
            bring(archive)
    assert fetched(tmp_path) == []
    assert read_overview(archive).states["refused"] == 1


@pytest.mark.full
def test_a_volume_stays_until_the_series_that_grew_is_there(tmp_path: Path):
    grown = files_of(VISIT, "T1w")
    with web_pacs(grown[:3]) as server:
        archive = archive_of(server, tmp_path)
        assert bring(archive).states["checked"] == 1
        [before] = (tmp_path / "volumes").glob("*.gz")
        last = grown[3]
        place = (last.StudyInstanceUID, last.SeriesInstanceUID, last.SOPInstanceUID)
        server.files = {**server.files, place: last}
        server.how.cut_after = 1
        with pytest.raises(BadSite, match="could not be fetched yet"):
            bring(archive)
        assert before.exists()
        server.how.cut_after = None
        smaller = before.stat().st_size
        assert bring(archive).states["checked"] == 1
        assert before.stat().st_size > smaller


@pytest.mark.full
def test_another_series_is_refused(tmp_path: Path):
    with (
        web_pacs(files_of(VISIT, "T1w"), sending(files_of(VISIT, "T2w"))) as server,
        pytest.raises(BadSite, match="a file of another series than was asked for"),
    ):
        bring(archive_of(server, tmp_path))
    assert fetched(tmp_path) == []


@pytest.mark.full
def test_a_pacs_that_sends_fewer_files_than_it_lists_is_refused(tmp_path: Path):
    files = files_of(VISIT, "T1w")
    with (
        web_pacs(files, sending(files[:3])) as server,
        pytest.raises(BadSite, match="does not send all of the 4 files that it lists"),
    ):
        bring(archive_of(server, tmp_path))


@pytest.mark.full
def test_parts_that_are_no_dicom_are_refused(tmp_path: Path):
    def garbage(handler: Handler, path: str) -> bool:
        if "/series/" in path and not path.endswith(("/series", "/instances")):
            part = f"--{BOUNDARY}\r\n\r\n<html>no</html>\r\n"
            kind = f"multipart/related; boundary={BOUNDARY}"
            handler.answer(f"{part * 4}--{BOUNDARY}--".encode(), kind)
            return True
        return False

    with (
        web_pacs(files_of(VISIT, "T1w"), Misbehaviour(before=garbage)) as server,
        pytest.raises(BadSite, match="its file is no DICOM file"),
    ):
        bring(archive_of(server, tmp_path))


@pytest.mark.full
def test_one_series_that_cannot_be_fetched_does_not_keep_the_others(tmp_path: Path):
    broken = VISIT.series("T1w")

    def fails(handler: Handler, path: str) -> bool:
        if broken in path and not path.endswith("/instances"):
            handler.answer(b"", code=500)
            return True
        return False

    with web_pacs(files_of(VISIT, "T1w", "T2w"), Misbehaviour(before=fails)) as server:
        archive = archive_of(server, tmp_path)
        with pytest.raises(BadSite, match="1 series could not be fetched yet"):
            bring(archive)
        assert read_overview(archive).states["checked"] == 1


@pytest.mark.full
def test_a_query_without_an_answer_is_a_sentence(tmp_path: Path):
    with web_pacs(files_of(VISIT, "T1w")) as server:
        query = ArchiveQuery(patients=("PID-1",))
        with pytest.raises(BadSite, match="no series was found"):
            bring(archive_of(server, tmp_path, query=query))
