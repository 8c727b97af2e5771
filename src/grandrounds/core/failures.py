"""A failure card says what went wrong at a site; elsewhere it says nothing of the site's data."""

import logging
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from traceback import extract_tb

from grandrounds.core.errors import BadInput, FailureCard, GrandRoundsError
from grandrounds.core.messages import Request
from grandrounds.core.sentence import Reason, Sentence

HINTS = {
    "FloatingPointError": "Lower training.learning_rate, or run in fp32 (training.precision).",
    "MemoryError": "Lower training.batch_size or the size of the network.",
    "OutOfMemoryError": "Lower training.batch_size or the size of the network.",
    "DiskFailed": "The rounds before this one are safe.",
    "WorkerDied": "If memory ran out, give fewer --workers; the rounds before this one are safe.",
    "SiteSilent": "Look at the site's machine and network; then resume the run.",
    "CorruptEnvelope": "Something on the way between the sites changes what is sent.",
    "ForgedEnvelope": "Look at the site's log and at the dates of its certificate; then resume.",
    "BadUpdate": "All sites must run the same version and study.",
    "TimeoutError": "Give slow sites more time (topology.patience), or ask what holds this one up.",
}
DIVERGED = "FloatingPointError"  # the class of the error where training leads nowhere
PHRASES = {
    "BadFolder": "a folder at the site cannot be used",
    "BadImage": "an image at the site cannot be used",
    "BadInput": "an input at the site cannot be used",
    "BadSite": "the site file, or the data that it names, cannot be used",
    "BadStudy": "the site cannot do what the study asks for",
    "DiskFailed": "the disk refused to save what must not be lost",
    "FloatingPointError": "a loss or a tensor is not finite",
    "MemoryError": "memory ran out",
    "OutOfMemoryError": "memory ran out",
}
LINES = 12  # of a trace that a card shows
# A class that stands under its name in one of these packages has a name that no data chose.
_PACKAGES = (
    *("builtins", "grandrounds", "csv", "gzip", "json", "nibabel", "numpy", "pydicom"),
    *("safetensors", "safetensors_rust", "torch", "zipfile", "zlib"),
)
_log = logging.getLogger(__name__)  # of the site, where failures keep their paths and names


def log_failure(site: str, error: BaseException) -> None:
    """Write the whole of an error into the site's log; `BadInput` says enough without a trace."""
    if isinstance(error, BadInput):
        _log.error("site '%s': %s", site, error)
    else:
        _log.error("site '%s' failed", site, exc_info=error)


def failure_card(site: str, request: Request, error: BaseException, message: str) -> FailureCard:
    """Return the card of an error for people at the site, with a message of any kind."""
    kind = type(error).__name__
    return FailureCard(
        site, request.round, _stage(request), kind, message, HINTS.get(kind, ""), _trace(error)
    )


@dataclass(frozen=True)
class Disclosure:
    """What others are told of an error at a site, made of fields that are safe by their type.

    `names` stand in the agreed study. A site that `reveals` its failures tells the whole message.
    """

    site: str
    names: frozenset[str] = frozenset()
    reveals: bool = False

    def card(
        self, request: Request, error: BaseException, safe: Sentence | None = None
    ) -> FailureCard:
        """Return the card of an error for others; `safe` is said instead of the error's own."""
        if self.reveals:
            return failure_card(self.site, request, error, self.message(error, safe))
        kind = class_name(error)
        return FailureCard(
            self.site,
            request.round,
            _stage(request),
            kind,
            self.message(error, safe),
            HINTS.get(kind, ""),
            _own_trace(error),
        )

    def message(self, error: BaseException, safe: Sentence | None = None) -> str:
        """Return what others are told of an error, and where the whole of it stands."""
        if self.reveals:
            return str(safe or error)
        log = f"see the log of site '{self.site}'"
        safe = safe or _safe(error)
        words = (safe and safe.told(self.names)) or _phrase(error)
        return f"{words}; {log}" if words else log


def class_name(error: BaseException) -> str:
    """Return the name of an error's class, or of the next one above that a program named."""
    return next(kind.__name__ for kind in type(error).__mro__ if _is_named_by_a_program(kind))


def _is_named_by_a_program(kind: type) -> bool:
    module = kind.__module__
    known = module.partition(".")[0] in _PACKAGES
    return known and getattr(sys.modules.get(module), kind.__name__, None) is kind


def _safe(error: BaseException) -> Sentence | None:
    safe = error.safe if isinstance(error, GrandRoundsError) else None
    return safe if type(safe) is Sentence else None


def _phrase(error: BaseException) -> str:
    if isinstance(error, OSError) and Reason.of(error).number:
        return str(Reason.of(error))
    return PHRASES.get(class_name(error), "")


def _stage(request: Request) -> str:
    return type(request).__name__.lower()


def _trace(error: BaseException) -> tuple[str, ...]:
    frames = extract_tb(error.__traceback__)[-LINES:]
    return tuple(f"{Path(frame.filename).name}:{frame.lineno} {frame.name}" for frame in frames)


def _own_trace(error: BaseException) -> tuple[str, ...]:
    """Return the innermost lines of a trace that lie in this program's own modules."""
    return tuple(_own_lines(error))[-LINES:]


def _own_lines(error: BaseException) -> Iterator[str]:
    trace = error.__traceback__
    while trace:
        code = trace.tb_frame.f_code
        module = _own_modules().get(code.co_filename)
        if module and code.co_name.strip("<>").isidentifier() and code.co_name.isascii():
            yield f"{module}:{trace.tb_lineno} {code.co_name}"
        trace = trace.tb_next


def _own_modules() -> dict[str, str]:
    """Map the file of each module of this program to the module's place in the package."""
    own = [name for name in sys.modules if name.startswith("grandrounds.")]
    files = {name: getattr(sys.modules[name], "__file__", None) for name in own}
    return {str(f): name.partition(".")[2].replace(".", "/") + ".py" for name, f in files.items()}
