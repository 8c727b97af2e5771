"""Thousands of damaged files: each is read or refused with a sentence, in bounded time and memory.

The seeds are numbers: `mutated(source, seed)` makes the same bytes in every run.
"""

import gzip
import random
import struct
import time
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from grandrounds.core.errors import BadImage
from grandrounds.data.dicom.instance import TROUBLES, Instance, RefusedFile
from grandrounds.data.dicom.parse import DicomReader
from grandrounds.data.dicom.parser import Limits
from grandrounds.data.dicom.series import find_series
from grandrounds.data.nifti import read_grid, read_voxels
from tests.helpers.dicom_conversions import SAMPLES
from tests.helpers.dicom_files import ramp, write_series
from tests.unit.data.dicom.test_series import enhanced

FEW, MANY = 120, 4000  # files of each kind
LIMITS = Limits(memory=768 << 20, voxels=1 << 22, seconds=3, wall=30, processes=2)
SOURCES = (
    *("MR_small.dcm", "MR_small_implicit.dcm", "MR_small_bigendian.dcm", "MR_small_RLE.dcm"),
    *("MR_small_jp2klossless.dcm", "MR_small_jpeg_ls_lossless.dcm", "nested_priv_SQ.dcm"),
    *("image_dfl.dcm", "CT_small.dcm", "rtdose_rle.dcm"),
)
WORDS = (0, 1, 2, 7, 0xFF, 0x7FFF, 0x8000, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFE, 0xFFFFFFFF)


def mutated(source: bytes, seed: int) -> bytes:
    """Change a file as a broken disk, a broken writer or an attacker would."""
    generator = random.Random(seed)
    found = bytearray(source)
    for _ in range(generator.choice((1, 1, 2, 4, 16))):
        at = generator.randrange(min(len(found), generator.choice((600, 2000, len(found)))))
        match generator.randrange(6):
            case 0:
                found[at] ^= 1 << generator.randrange(8)
            case 1:
                found[at : at + 4] = struct.pack("<I", generator.choice(WORDS))
            case 2:
                found[at : at + 2] = struct.pack("<H", generator.choice(WORDS) & 0xFFFF)
            case 3:
                del found[at : at + generator.randrange(1, 200)]
            case 4:
                found[at:at] = found[at : at + generator.randrange(1, 400)]
            case _:
                del found[at + 200 :]
        if len(found) < 8:
            break
    return bytes(found)


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> list[bytes]:
    folder = tmp_path_factory.mktemp("sources")
    plain = write_series(folder, ramp((6, 5, 3)))
    enhanced(ramp((4, 3, 5)), [2, 0, 1, 4, 3]).save_as(folder / "enhanced.dcm")
    real = [(SAMPLES / "test_files" / name).read_bytes() for name in SOURCES]
    return [plain[0].read_bytes(), (folder / "enhanced.dcm").read_bytes(), *real]


@pytest.fixture
def damaged(tmp_path: Path, sources: list[bytes], request: pytest.FixtureRequest) -> list[Path]:
    paths = [tmp_path / f"{seed:05d}.dcm" for seed in range(request.param)]
    for seed, path in enumerate(paths):
        path.write_bytes(mutated(sources[seed % len(sources)], seed))
    return paths


def largest_memory(reader: DicomReader) -> int:
    """The most bytes of memory that a process that parses has held at once."""
    most = 0
    for parser in reader._all:
        if parser._process is not None:
            status = Path(f"/proc/{parser._process.pid}/status").read_text()
            most = max(most, int(status.split("VmHWM:")[1].split()[0]) << 10)
    return most


@pytest.mark.slow
@pytest.mark.parametrize(
    "damaged", [FEW, pytest.param(MANY, marks=pytest.mark.full)], indirect=True
)
def test_damaged_dicom_files_are_read_or_refused(damaged: list[Path]):
    known = {words.split("{")[0] for _, words in TROUBLES.values()}
    start = time.monotonic()
    with DicomReader(LIMITS) as reader:
        found = list(reader.headers(damaged))
        assert [each.path for each in found] == damaged
        for each in found:
            if isinstance(each, RefusedFile):
                assert any(str(each.reason).startswith(words) for words in known)
        volumes = refused = 0
        for each in found:
            for series in find_series([each] if isinstance(each, Instance) else []).series:
                try:
                    reader.volume(series)
                    volumes += 1
                except BadImage:
                    refused += 1
        find_series(each for each in found if isinstance(each, Instance))
        assert largest_memory(reader) < LIMITS.memory
    assert volumes > len(damaged) / 20
    assert refused > 0
    assert time.monotonic() - start < 1 * len(damaged) + 60


def refusal_of(path: Path) -> str:
    try:
        read_grid(path)
        read_voxels(path)
    except BadImage as error:
        return str(error)
    return ""


@pytest.mark.slow
@pytest.mark.parametrize("count", [FEW, pytest.param(MANY, marks=pytest.mark.full)])
def test_damaged_nifti_files_are_read_or_refused(tmp_path: Path, count: int):
    voxels = np.arange(120, dtype=np.int16).reshape(4, 5, 6)
    plain = nib.Nifti1Image(voxels, np.diag([2, 3, 4, 1])).to_bytes()
    read = 0
    for seed in range(count):
        content = mutated(plain, seed)
        if seed % 3 == 0:
            content = gzip.compress(content, 1)
        if seed % 6 == 3:
            content = mutated(content, seed)
        path = tmp_path / ("v.nii.gz" if seed % 3 == 0 else "v.nii")
        path.write_bytes(content)
        said = refusal_of(path)
        read += not said
        assert not said or said.startswith(f"{path}: ")
    assert 0 < read < count
