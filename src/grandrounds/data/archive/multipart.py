"""An answer of several parts (RFC 2046) is taken apart as it streams; nothing is held whole."""

import re
from collections.abc import Generator, Iterable
from dataclasses import dataclass, field

_BOUNDARY = re.compile(
    r"""multipart/related\b.*?;\s*boundary=("([^"]{1,200})"|[^\s;"]{1,200})""", re.I
)
LARGEST_HEADER = 1 << 14  # bytes of the lines before a part's content


class BadAnswer(Exception):  # noqa: N818 - it ends in who asked
    """What came is no answer of parts; the message says what it is.

    `early` tells that it may have been one, and ended before its end.
    """

    def __init__(self, message: str, *, early: bool = False) -> None:
        super().__init__(message)
        self.early = early


def boundary_of(content_type: str) -> bytes:
    """Return what stands between the parts. Raises `BadAnswer`."""
    match = _BOUNDARY.search(content_type)
    if not match:
        raise BadAnswer("no answer of several parts")
    return (match[2] or match[1]).encode("latin-1")


@dataclass
class PartStream:
    """Cuts chunks of bytes at their boundaries."""

    boundary: bytes
    _held: bytearray = field(default_factory=bytearray)

    def pieces(self, chunks: Iterable[bytes]) -> Generator[tuple[int, bytes | None]]:
        """Yield pieces of content with the number of their part, and None where a part is whole.

        Raises `BadAnswer` where a part has no end.
        """
        source = iter(chunks)
        mark = b"\r\n--" + self.boundary
        self._held[:] = b"\r\n"  # the first boundary may stand at the beginning
        for _ in self._until(mark, source):
            pass  # what stands before the first part means nothing
        number = 0
        while not self._is_last(source):
            self._skip_header(source)
            for piece in self._until(mark, source):
                yield number, piece
            yield number, None
            number += 1

    def _until(self, mark: bytes, source: Iterable[bytes]) -> Generator[bytes]:
        """Yield what comes before a mark, which is taken away."""
        while (place := self._held.find(mark)) < 0:
            keep = len(mark) - 1
            if len(self._held) > keep:
                yield bytes(self._held[:-keep])
                del self._held[:-keep]
            self._fill(source)
        if place:
            yield bytes(self._held[:place])
        del self._held[: place + len(mark)]

    def _is_last(self, source: Iterable[bytes]) -> bool:
        while len(self._held) < 2:
            self._fill(source)
        return self._held.startswith(b"--")

    def _skip_header(self, source: Iterable[bytes]) -> None:
        while (place := self._held.find(b"\r\n\r\n")) < 0:
            if len(self._held) > LARGEST_HEADER:
                raise BadAnswer("a part without an end of its header")
            self._fill(source)
        del self._held[: place + 2]  # an empty part has its boundary right here
        if not self._held.startswith(b"\r\n--" + self.boundary):
            del self._held[:2]

    def _fill(self, source: Iterable[bytes]) -> None:
        chunk = next(iter(source), None)
        if chunk is None:
            raise BadAnswer("an answer that ends in the middle of a part", early=True)
        self._held += chunk
