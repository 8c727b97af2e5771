"""Files made to crash, hang or grow the parser cost themselves, with one sentence, and no more."""

import os
import resource
import signal
import struct
import time
import zlib
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
from pydicom.encaps import encapsulate
from pydicom.uid import UID

from grandrounds.core.errors import BadImage
from grandrounds.data.dicom.instance import Instance, RefusedFile
from grandrounds.data.dicom.parse import DicomReader
from grandrounds.data.dicom.parser import Limits, Parser
from grandrounds.data.dicom.series import Series, find_series
from tests.helpers.dicom_files import ramp, slice_dataset, write_series

LIMITS = Limits(memory=1 << 30, seconds=5, wall=20, processes=1)
DEFLATED = "1.2.840.10008.1.2.1.99"
JPEG_2000 = "1.2.840.10008.1.2.4.90"


@pytest.fixture(scope="module")
def reader() -> Iterator[DicomReader]:
    with DicomReader(LIMITS) as opened:
        yield opened


@pytest.fixture
def good(tmp_path: Path) -> Path:
    return write_series(tmp_path / "good", ramp((4, 4, 1)))[0]


def read(reader: DicomReader, path: Path, good: Path) -> str:
    """What is said of a file; the one after it is read as if nothing had been."""
    found, after = reader.headers([path, good])
    assert isinstance(after, Instance)
    assert isinstance(found, RefusedFile)
    return str(found.reason)


def series_in(reader: DicomReader, paths: list[Path]) -> tuple[Series, ...]:
    found = reader.headers(paths)
    return find_series(each for each in found if isinstance(each, Instance)).series


def element(group: int, number: int, kind: bytes, value: bytes) -> bytes:
    long = kind in (b"SQ", b"OB", b"OW", b"UN")
    length = struct.pack("<HI", 0, len(value)) if long else struct.pack("<H", len(value))
    return struct.pack("<HH", group, number) + kind + length + value


def as_file(path: Path, body: bytes, syntax: str = "1.2.840.10008.1.2.1") -> Path:
    padded = syntax.encode() + b"\0" * (len(syntax) % 2)
    meta = element(2, 0x10, b"UI", padded)
    meta = element(2, 0, b"UL", struct.pack("<I", len(meta))) + meta
    path.write_bytes(b"\0" * 128 + b"DICM" + meta + body)
    return path


def test_sequences_nested_without_end_are_refused(tmp_path: Path, reader: DicomReader, good: Path):
    opened = struct.pack("<HH2sHI", 0x0008, 0x1115, b"SQ", 0, 0xFFFFFFFF)
    opened += struct.pack("<HHI", 0xFFFE, 0xE000, 0xFFFFFFFF)
    found = read(reader, as_file(tmp_path / "deep.dcm", opened * 50_000), good)
    assert found == "has sequences nested too deeply to parse"


def test_a_length_beyond_the_file_is_refused(tmp_path: Path, reader: DicomReader, good: Path):
    body = struct.pack("<HH2sHI", 0x0008, 0x2111, b"OB", 0, 0xFFFFFFF0) + b"x"
    found = read(reader, as_file(tmp_path / "long.dcm", body), good)
    assert found == "needs more memory than the 1024 MiB that a parser may have"


def test_a_deflated_bomb_is_refused(tmp_path: Path, reader: DicomReader, good: Path):
    packer = zlib.compressobj(1, zlib.DEFLATED, -15)
    start = struct.pack("<HH2sHI", 0x0009, 0x0010, b"OB", 0, 0xFFFFFFF0)
    begin = packer.compress(start) + packer.flush(zlib.Z_FULL_FLUSH)
    zeros = packer.compress(bytes(1 << 24)) + packer.flush(zlib.Z_FULL_FLUSH)  # 16 MiB each
    bomb = begin + zeros * 96
    path = as_file(tmp_path / "bomb.dcm", bomb, DEFLATED)
    assert path.stat().st_size < 16 << 20
    found = read(reader, path, good)
    assert found == "needs more memory than the 1024 MiB that a parser may have"


@pytest.mark.parametrize(
    ("frames", "sentence"),
    [
        (1 << 31, "has 2147483648 frames; at most 20000 are read"),
        (20_000, "has 44 bytes of pixel data where its header needs 171793449000000"),
        (-1, "has no rows, columns or frames"),
    ],
)
def test_sizes_that_no_file_holds_are_refused(
    tmp_path: Path, reader: DicomReader, good: Path, frames: int, sentence: str
):
    dataset = slice_dataset(ramp((4, 4, 1))[:, :, 0], np.eye(4), 0, NumberOfFrames=frames)
    dataset.Rows = dataset.Columns = 65_535
    dataset.save_as(tmp_path / "vast.dcm")
    found = read(reader, tmp_path / "vast.dcm", good)
    assert found == sentence


def test_a_compressed_volume_larger_than_allowed_is_refused_before_it_is_decoded(tmp_path: Path):
    dataset = compressed(b"\xff\x4f\xff\x51" + bytes(40))
    dataset.Rows = dataset.Columns = 65_535
    dataset.save_as(tmp_path / "vast.dcm")
    with DicomReader(LIMITS) as reader:
        [series] = series_in(reader, [tmp_path / "vast.dcm"])
        with pytest.raises(BadImage, match=r"would have 4294836225 voxels; at most 268435456"):
            reader.volume(series)


def compressed(stream: bytes):
    dataset = slice_dataset(ramp((4, 4, 1))[:, :, 0], np.eye(4), 0)
    dataset.file_meta.TransferSyntaxUID = UID(JPEG_2000)
    dataset.PixelData = encapsulate([stream])
    dataset["PixelData"].VR = "OB"
    return dataset


def test_a_stream_that_no_decoder_reads_is_refused(tmp_path: Path, reader: DicomReader):
    compressed(b"\xff\x4f\xff\x51" + bytes(range(200))).save_as(tmp_path / "broken.dcm")
    [series] = series_in(reader, [tmp_path / "broken.dcm"])
    with pytest.raises(BadImage, match="has pixel data that cannot be decoded") as caught:
        reader.volume(series)
    assert caught.value.safe is not None
    told = "a DICOM file of a series has pixel data that cannot be decoded"
    assert caught.value.safe.told(frozenset()) == told


EVIL = {  # what a file makes its parser do, and what is said of it
    "os.kill(os.getpid(), signal.SIGSEGV)": "ended its parser by signal 11",
    "while True: pass": "keeps its parser busy for longer than 0.2 seconds",
    "os._exit(0)": "ended its parser without an answer",
    "bytearray(1 << 31)": "needs more memory than the 1024 MiB that a parser may have",
    "print('{}')": "has a header that cannot be parsed",
    "os.close(0), os.close(1), os.close(2)": "has a header that cannot be parsed",
}


@pytest.mark.slow
@pytest.mark.parametrize("evil", [list(EVIL)[:2], pytest.param(list(EVIL), marks=pytest.mark.full)])
def test_a_parser_that_dies_or_grows_costs_its_file(
    tmp_path: Path, good: Path, monkeypatch: pytest.MonkeyPatch, evil: list[str]
):
    found = attacked(tmp_path, good, monkeypatch, evil, wall=60)
    assert found[1::2] == [EVIL[each] for each in evil]
    assert set(found[::2]) == {"read"}


@pytest.mark.slow
def test_a_parser_that_sleeps_is_ended(tmp_path: Path, good: Path, monkeypatch: pytest.MonkeyPatch):
    found = attacked(tmp_path, good, monkeypatch, ["time.sleep(60)"], wall=2)
    assert found == ["read", "keeps its parser busy for longer than 2 seconds", "read"]


def test_answers_stay_with_their_files_where_a_parser_dies_unseen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """It has answered some of what it was asked, and is dead before anyone asks again."""
    put_in_pydicoms_place(tmp_path, monkeypatch, ["os._exit(0)"])
    paths = write_series(tmp_path / "many", ramp((4, 4, 30)))
    evil = paths[5].rename(tmp_path / "evil0")
    with closing(Parser(LIMITS)) as parser:
        asked = [(path, {"do": "header"}) for path in (*paths[:5], evil, *paths[6:])]
        answers = parser.ask(asked)
        found = [next(answers)]
        time.sleep(0.5)
        found += answers
    assert isinstance(found[5], RefusedFile)
    del found[5], asked[5]
    with DicomReader(LIMITS) as reader:
        alone = [each for each in reader.headers(p for p, _ in asked) if isinstance(each, Instance)]
    told = [cast("dict[str, Any]", each)["sop_uid"] for each in found]
    assert told == [each.sop_uid for each in alone]


def test_a_parser_is_heard_however_many_files_are_open(reader: DicomReader, good: Path):
    """What select() cannot name: descriptors from 1,024 on."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    null = os.open(os.devnull, os.O_RDONLY)
    held = [null, *(os.dup(null) for _ in range(1100))]
    try:
        with DicomReader(LIMITS) as late:
            [found] = late.headers([good])
    finally:
        for descriptor in held:
            os.close(descriptor)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert isinstance(found, Instance)


def attacked(
    tmp_path: Path, good: Path, monkeypatch: pytest.MonkeyPatch, evil: list[str], wall: float
) -> list[str]:
    """What is said of a good file, an evil one, a good one, and so on."""
    put_in_pydicoms_place(tmp_path, monkeypatch, evil)
    paths = [good]
    for number in range(len(evil)):
        paths += [tmp_path / f"evil{number}", good]
        paths[-2].write_bytes(good.read_bytes())
    limits = Limits(memory=1 << 30, seconds=0.2, wall=wall, processes=1)
    with DicomReader(limits) as reader:
        found = list(reader.headers(paths))
    return [str(each.reason) if isinstance(each, RefusedFile) else "read" for each in found]


def put_in_pydicoms_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, evil: list[str]) -> None:
    """Let the process that parses run code that fails, for a file with the code's number."""
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(f"""
import os, signal, time, pydicom
real, evil = pydicom.dcmread, {evil!r}
def dcmread(file, **options):
    name = os.path.basename(os.readlink(f"/proc/self/fd/{{file.fileno()}}"))
    if name.startswith("evil"):
        exec(evil[int(name[4:])])
        raise ValueError
    return real(file, **options)
pydicom.dcmread = dcmread
""")
    monkeypatch.syspath_prepend(str(tmp_path / "site"))


def test_a_pipe_and_a_device_and_a_link_do_not_hang(
    tmp_path: Path, reader: DicomReader, good: Path
):
    os.mkfifo(tmp_path / "pipe.dcm")
    (tmp_path / "link.dcm").symlink_to(good)
    (tmp_path / "folder.dcm").mkdir()
    start = time.monotonic()
    for name in ("pipe.dcm", "link.dcm", "folder.dcm"):
        found = read(reader, tmp_path / name, good)
        assert found == "is no regular file (a pipe, a device or a link)", name
    assert read(reader, Path("/dev/zero"), good).startswith("is no regular file")
    assert read(reader, tmp_path / "none.dcm", good) == "cannot be read (No such file or directory)"
    assert time.monotonic() - start < 10


def test_a_file_that_changes_after_its_header_was_read_is_refused(
    tmp_path: Path, reader: DicomReader
):
    paths = write_series(tmp_path / "s", ramp())
    [series] = series_in(reader, paths)
    paths[2].write_bytes(paths[1].read_bytes() + b"\0\0")
    with pytest.raises(BadImage, match="has changed since its header was read; its series needs"):
        reader.volume(series)
    assert reader.volume(series_in(reader, paths[:2])[0]).voxels.shape[2] == 2


def test_the_process_ends_with_its_reader(tmp_path: Path, good: Path):
    with DicomReader(LIMITS) as opened:
        list(opened.headers([good]))
        [process] = [parser._process for parser in opened._all]
        assert process is not None
        os.kill(process.pid, 0)
    assert process.returncode == -signal.SIGKILL
