"""DICOM files are parsed in processes with limits; what crashes, hangs or grows costs its own file.

A process answers with plain JSON that is rebuilt type by type; voxels come by a file without a
name. After each death it is started again.
"""

from collections import deque
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, contextmanager
from importlib.util import find_spec
from itertools import islice
from pathlib import Path
from queue import SimpleQueue
from typing import Any, Self, TypeAlias, cast

from grandrounds.core.errors import BadImage, BadInput
from grandrounds.core.extras import install_command
from grandrounds.core.sentence import phrase
from grandrounds.core.serialization import from_plain
from grandrounds.data.dicom.instance import Instance, RefusedFile, trouble_with
from grandrounds.data.dicom.parser import USUAL_LIMITS, Limits, Parsed, Parser
from grandrounds.data.dicom.series import Series
from grandrounds.data.dicom.volume import Volume, volume_of

_BATCH = 64  # files that one process is asked for in a go
_AHEAD = 2  # batches of each process that are asked for before the first is used
_Planned: TypeAlias = tuple[int, int, float, float]


def read_headers(
    paths: Iterable[Path], limits: Limits = USUAL_LIMITS
) -> Iterator[Instance | RefusedFile]:
    """Read what each file says of itself, in the order given."""
    with DicomReader(limits) as reader:
        yield from reader.headers(paths)


def read_series(series: Series, limits: Limits = USUAL_LIMITS) -> Volume:
    """Read a series' voxels, as `DicomReader.volume` does."""
    with DicomReader(limits) as reader:
        return reader.volume(series)


class DicomReader:
    """Processes that parse files, while it is open: they start on first use and end with it."""

    def __init__(self, limits: Limits = USUAL_LIMITS) -> None:
        if find_spec("pydicom") is None:
            raise BadInput(
                "reading DICOM files needs the package pydicom; install it with "
                f"{install_command('dicom')}"
            )
        self.limits = limits
        self._free: SimpleQueue[Parser] = SimpleQueue()
        self._all = tuple(Parser(limits) for _ in range(max(1, limits.processes)))
        for parser in self._all:
            self._free.put(parser)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for parser in self._all:
            parser.close()

    def headers(self, paths: Iterable[Path]) -> Iterator[Instance | RefusedFile]:
        """Read what each file says of itself, in the order given; several side by side."""
        left = iter(paths)
        waiting: deque[Future[list[Instance | RefusedFile]]] = deque()
        with ThreadPoolExecutor(len(self._all)) as threads:
            while batch := list(islice(left, _BATCH)):
                waiting.append(threads.submit(self._batch, batch))
                if len(waiting) > _AHEAD * len(self._all):
                    yield from waiting.popleft().result()
            while waiting:
                yield from waiting.popleft().result()

    def volume(self, series: Series) -> Volume:
        """Read a series' voxels.

        Raises `BadImage` where one of its files cannot be decoded, or it is larger than the limits.
        """
        columns, rows, slices = series.grid.shape
        count = columns * rows * slices
        if count > self.limits.voxels:
            raise _lost(
                trouble_with(series.first.path, "voxels", found=count, most=self.limits.voxels)
            )
        with self._parser() as parser:
            parser.clear()
            asked = [(i.path, _plan(i, frames)) for i, frames in _frames_of(series)]
            with closing(parser.ask(asked)) as answers:
                for found in answers:
                    if isinstance(found, RefusedFile):
                        raise _lost(found)
            stack = parser.voxels((slices, rows, columns))
        if stack is None:
            raise _lost(trouble_with(series.first.path, "answer"))
        return volume_of(series, stack)

    def _batch(self, paths: Sequence[Path]) -> list[Instance | RefusedFile]:
        with self._parser() as parser:
            answers = parser.ask([(path, {"do": "header"}) for path in paths])
            return [_described(path, found) for path, found in zip(paths, answers, strict=True)]

    @contextmanager
    def _parser(self) -> Generator[Parser, None, None]:
        parser = self._free.get()
        try:
            yield parser
        finally:
            self._free.put(parser)


def _described(path: Path, found: Parsed) -> Instance | RefusedFile:
    if isinstance(found, RefusedFile):
        return found
    try:
        return from_plain(Instance, {**cast("dict[str, Any]", found), "path": path})
    except (TypeError, KeyError):
        return trouble_with(path, "answer")


def _lost(found: RefusedFile) -> BadImage:
    """Return the error of a series that lacks one of its files."""
    return BadImage(
        f"{found.path}: {found.reason}; its series needs every one of its files.",
        safe=phrase("a DICOM file of a series {what}", what=found.reason),
    )


def _frames_of(series: Series) -> list[tuple[Instance, list[_Planned]]]:
    """Return each file with its frames: number, place in the volume, slope and intercept."""
    files: dict[Path, tuple[Instance, list[_Planned]]] = {}
    for place, picture in enumerate(series.pictures):
        frame = picture.frame
        planned = (frame.number, place, frame.slope, frame.intercept)
        files.setdefault(picture.instance.path, (picture.instance, []))[1].append(planned)
    return list(files.values())


def _plan(instance: Instance, frames: list[_Planned]) -> Mapping[str, Any]:
    return {
        "do": "pixels",
        "frames": frames,
        "sop_uid": instance.sop_uid,
        "rows": instance.rows,
        "columns": instance.columns,
        "syntax": instance.transfer_syntax,
        "bits": (instance.bits_allocated, instance.bits_stored),
        "signed": instance.signed,
        "stored": (instance.stored.size, instance.stored.modified, instance.stored.pixels),
        "tiles": instance.tiles,
        "padding": instance.padding,
        "inverted": instance.photometric == "MONOCHROME1",
    }
