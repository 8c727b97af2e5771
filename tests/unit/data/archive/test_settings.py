"""`[archive]` of a site file: what it may say, and the sentence for what it may not."""

from datetime import date
from pathlib import Path

import pytest

from grandrounds.core.errors import BadSite
from grandrounds.data.archive.settings import Access, ArchiveQuery, patients_of
from grandrounds.data.dicom.contrast import ContrastRule
from grandrounds.study.site_file import read_site

PLAIN = 'name = "alder"\ndata = "prepared"\n'
PACS = '[archive]\nurl = "https://pacs.example/dicom-web"\nvolumes = "volumes"\n'
FOLDER = '[archive]\nfolder = "dicom"\nvolumes = "volumes"\n'


def site_of(folder: Path, text: str):
    path = folder / "site.toml"
    path.write_text(PLAIN + text)
    return read_site(path)


def test_a_site_file_without_an_archive_reads_as_before(tmp_path: Path):
    assert site_of(tmp_path, "").archive is None


def test_an_archive_is_read_and_its_paths_start_at_the_site_file(tmp_path: Path):
    found = site_of(
        tmp_path,
        PACS + '[archive.query]\nsince = 2020-01-31\npatients = ["1", "2"]\n'
        '[archive.access]\ntoken_file = "secrets/token"\nauthority = "/etc/ca.pem"\n'
        '[[archive.contrast]]\nseries = "*flair*"\ncontrast = "FLAIR"\n',
    ).archive
    assert found
    assert found.volumes == tmp_path / "volumes"
    assert found.table == tmp_path / "volumes-private" / "cases.sqlite"
    assert found.query == ArchiveQuery(since=date(2020, 1, 31), patients=("1", "2"))
    assert found.access == Access(
        token_file=tmp_path / "secrets" / "token", authority=Path("/etc/ca.pem")
    )
    assert found.contrast == (ContrastRule("*flair*", "FLAIR"),)
    assert not found.identified


WRONG = {
    '[archive]\nvolumes = "v"\n': "archive needs one of folder",
    FOLDER + 'url = "https://x/y"\n': "archive needs one of folder",
    '[archive]\nfolder = "x"\n': "'archive.volumes' is missing",
    FOLDER + "[archive.query]\nbody_part = 'BRAIN'\n": "are for a PACS",
    FOLDER + 'token = "abc"\n': "unknown key 'archive.token'",
    PACS.replace("https://pacs", "https://me:secret@pacs"): "archive.url has a user in it",
    PACS.replace("https:", "ftp:"): "must be the address of DICOMweb",
    PACS.replace("https://pacs.example/dicom-web", "pacs.example"): "must be the address",
    PACS.replace("https:", "http:") + '[archive.access]\ntoken_file = "t"\n': "in the clear",
    PACS + '[archive.access]\ntoken_file = "t"\ntoken_variable = "T"\n': "give one",
    PACS + '[archive.access]\nkey = "k"\n': "needs the certificate",
    PACS + "[archive.access]\ntimeout = 0\n": "timeout is 0; it must be above 0",
    PACS + "[archive.access]\nretries = 99\n": "retries must be from 0 to 20",
    PACS + "[archive.query]\nsince = 2021-01-01\nuntil = 2020-01-01\n": "since is after",
    PACS + "[archive.query]\nsince = 'last week'\n": "archive.query.since = 'last week' is wrong",
    FOLDER.replace('"volumes"', '"dicom/v"'): "archive.volumes lies in archive.folder",
    FOLDER + 'private = "volumes/p"\n': "archive.private lies in archive.volumes",
    FOLDER + '[[archive.contrast]]\nseries = "*"\ncontrast = "../x"\n': "letters and digits",
    FOLDER + '[[archive.contrast]]\nseries = "*"\ncontrast = "mask"\n': "letters and digits",
}


@pytest.mark.parametrize("text", WRONG)
def test_what_is_wrong_is_named(text: str, tmp_path: Path):
    with pytest.raises(BadSite) as refused:
        site_of(tmp_path, text)
    assert WRONG[text] in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_token_is_taken_from_a_variable_or_a_file(tmp_path: Path, monkeypatch):
    monkeypatch.setenv("PACS_TOKEN", "moulin\n")
    assert Access(token_variable="PACS_TOKEN").authorization() == "Bearer moulin"
    (tmp_path / "token").write_text("site:moulin\n")
    basic = Access(token_file=tmp_path / "token", token_kind="Basic")
    assert basic.authorization() == "Basic c2l0ZTptb3VsaW4="
    assert Access().authorization() is None


@pytest.mark.parametrize("secret", ["", "two\nlines", "mühle"])
def test_a_token_that_is_none_is_not_sent(secret: str, monkeypatch):
    monkeypatch.setenv("PACS_TOKEN", secret)
    with pytest.raises(BadSite, match="PACS_TOKEN holds no token"):
        Access(token_variable="PACS_TOKEN").authorization()


def test_patients_are_listed_one_a_line(tmp_path: Path):
    path = tmp_path / "patients.txt"
    path.write_bytes(b"\xef\xbb\xbf17\r\n\r\n 18 \r\n")
    assert patients_of(ArchiveQuery(patients=("16", "17"), patients_file=path)) == (
        "16",
        "17",
        "18",
    )
    path.write_text("\n")
    with pytest.raises(BadSite, match="lists no patient"):
        patients_of(ArchiveQuery(patients_file=path))
    with pytest.raises(BadSite, match="No such file"):
        patients_of(ArchiveQuery(patients_file=tmp_path / "none"))
