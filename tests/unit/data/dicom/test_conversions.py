"""Volumes equal those of SimpleITK and dcm2niix; the page of docs that says so is of this code."""

import os
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY
from tests.helpers.dicom_conversions import Conversions, as_table, convert_all, dcm2niix_program

PAGE = REPOSITORY / "docs" / "reference" / "dicom.md"
MARK = "<!-- made by tests/unit/data/dicom/test_conversions.py -->\n"
# What differs, each by a fault or a choice that the page explains.
KNOWN = {
    "ge_fse_pd_axial": "dcm2niix takes the step of the first two slices",
    "pydicom J2K_pixelrep_mismatch.dcm": "dcm2niix takes signed values as unsigned",
}


REPRESENTATIVES = (
    *("siemens_epi_mosaic", "uih_t1_gre_sag", "ge_epi"),  # of the fourth, SimpleITK takes 5 s
    *("misc/implicit_little.dcm", "misc/rle.dcm", "pydicom MR_small_bigendian.dcm"),
)


@pytest.fixture(scope="module", autouse=True)
def dcm2niix() -> None:
    if dcm2niix_program() is None:
        reason = "dcm2niix is missing: pip install dcm2niix"
        pytest.fail(reason) if os.environ.get("CI") == "true" else pytest.skip(reason)


@pytest.mark.slow
def test_volumes_equal_those_of_others_as_the_page_says(real_data: Path):
    found = convert_all(real_data, REPRESENTATIVES)
    assert_equal(found)
    lines = set(PAGE.read_text("utf-8").splitlines())
    rows = as_table(Conversions(found.volumes, ())).splitlines()[2:-3]
    assert rows
    assert not set(rows) - lines, "run the test of all files with --rewrite-golden"


@pytest.mark.slow
@pytest.mark.full
def test_the_page_says_what_becomes_of_every_file(real_data: Path, request: pytest.FixtureRequest):
    """`pytest --rewrite-golden` writes the tables anew."""
    found = convert_all(real_data)
    assert_equal(found)
    before, mark, table = PAGE.read_text("utf-8").partition(MARK)
    assert mark, f"{PAGE} has no tables"
    if request.config.getoption("--rewrite-golden"):
        PAGE.write_text(before + mark + "\n" + as_table(found), "utf-8")
    else:
        assert table == "\n" + as_table(found), "run this test with --rewrite-golden"


def assert_equal(found: Conversions) -> None:
    for each in found.volumes:
        told = {each.itk, each.dcm2niix} - {"not read"}
        assert told, f"{each.name}: nothing else reads it"
        if each.name not in KNOWN:
            assert told == {"same place, equal"}, each
        else:
            assert "same place, equal" in told, each
