"""The process that parses DICOM files: asked line by line, with limits on memory and time.

It reads a JSON object a line from its standard input and answers each with one; voxels go into a
file that it was started with. A file that ends it costs that file: it is started again.
"""

import json
import os
import resource
import stat
import sys
import warnings
from collections.abc import Callable, Mapping
from io import BufferedReader
from typing import Any, BinaryIO, cast

from grandrounds.core.processes import end_when_orphaned
from grandrounds.data.dicom.instance import Unusable

_Answer = Mapping[str, object]


def main() -> None:
    """_Answer requests until the standard input ends."""
    replies = _own_output()
    out, memory, most_written = (int(each) for each in sys.argv[1:4])
    end_when_orphaned()
    # What pydicom would load to fetch its samples from the network has no place here.
    sys.modules["requests"] = cast("Any", None)
    from grandrounds.data.dicom import pixels, reading  # limits come after what is heavy

    _limit(memory, most_written)
    warnings.simplefilter("ignore")
    sys.setrecursionlimit(2000)
    work: Mapping[str, Callable[[BinaryIO, Mapping[str, Any]], object]] = {
        "header": lambda file, _: reading.describe(file),
        "pixels": lambda file, request: pixels.write_frames(file, request, out),
    }
    _say(replies, {"ready": True})
    for line in sys.stdin.buffer:
        request = cast("Mapping[str, Any]", json.loads(line))
        _allow_seconds(float(request["seconds"]))
        _say(replies, _answered(work[request["do"]], request))


def _own_output() -> BinaryIO:
    """Return the standard output, and let libraries print nowhere: they quote headers."""
    replies = os.fdopen(os.dup(1), "wb")
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    os.dup2(nowhere, 2)
    return replies


def _limit(memory: int, most_written: int) -> None:
    resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
    resource.setrlimit(resource.RLIMIT_FSIZE, (most_written, most_written))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _allow_seconds(seconds: float) -> None:
    """Give the next file this much processor time; beyond it the system ends this process."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    allowed = int(used.ru_utime + used.ru_stime + seconds) + 1
    _, hard = resource.getrlimit(resource.RLIMIT_CPU)
    resource.setrlimit(resource.RLIMIT_CPU, (allowed, hard))


def _answered(
    work: Callable[[BinaryIO, Mapping[str, Any]], object],
    request: Mapping[str, Any],
) -> _Answer:
    try:
        with _open(request["path"]) as file:
            if (size := _size(file)) > request["bytes"]:
                return {"trouble": "large", "numbers": {"found": size, "most": request["bytes"]}}
            return {"found": work(file, request)}
    except Unusable as found:
        return {"trouble": found.code, "numbers": found.numbers}
    except Exception as error:  # whatever a parser trips over costs this file alone
        return _trouble(error, request)


def _trouble(error: Exception, request: Mapping[str, Any]) -> _Answer:
    match error:
        case _NotAFile():
            return {"trouble": "not-file"}
        case OSError(errno=number) if number:
            return {"trouble": "closed", "number": number}
        case MemoryError():
            return {"trouble": "memory", "tired": _is_grown()}
        case RecursionError():
            return {"trouble": "deep", "tired": _is_grown()}
        case _:
            return {"trouble": "header" if request["do"] == "header" else "pixels"}


def _is_grown() -> bool:
    """Tell whether this process still holds much of its memory, and should be a fresh one."""
    most, _ = resource.getrlimit(resource.RLIMIT_AS)
    try:
        with open("/proc/self/statm", "rb") as file:  # noqa: PTH123 - pathlib is not needed here
            held = int(file.read().split()[1]) * resource.getpagesize()
    except OSError:
        return True
    return held > most // 4


class _NotAFile(Exception):  # noqa: N818 - it ends inside this module
    pass


def _open(path: str) -> BufferedReader:
    """Open a regular file; a pipe would wait for a writer, and a link may lead anywhere."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError as error:
        if path and os.path.islink(path):  # noqa: PTH114 - of text, as it came
            raise _NotAFile from None
        raise error
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise _NotAFile
    return os.fdopen(descriptor, "rb")


def _size(file: BinaryIO) -> int:
    return os.fstat(file.fileno()).st_size


def _say(replies: BinaryIO, answer: _Answer) -> None:
    replies.write(json.dumps(answer).encode() + b"\n")
    replies.flush()


if __name__ == "__main__":
    main()
