"""A failure card says what went wrong at a site, without what only the site may know."""

import re
from dataclasses import dataclass
from pathlib import Path
from traceback import extract_tb

from grandrounds.core.errors import FailureCard
from grandrounds.core.messages import Request

HINTS = {
    "FloatingPointError": "Lower training.learning_rate, or run in fp32 (training.precision).",
    "MemoryError": "Lower training.batch_size or the size of the network.",
    "OutOfMemoryError": "Lower training.batch_size or the size of the network.",
    "DiskFailed": "The rounds before this one are safe.",
    "WorkerDied": "If memory ran out, give fewer --workers; the rounds before this one are safe.",
    "SiteSilent": "Look at the site's machine and network; then resume the run.",
    "CorruptEnvelope": "Something on the way between the sites changes what is sent.",
    "BadUpdate": "All sites must run the same version and study.",
    "TimeoutError": "Give slow sites more time (topology.patience), or ask what holds this one up.",
}
PATH = re.compile(r"""(?:~|\.{1,2}|[A-Za-z]:)?[/\\](?:[^\s'",;:()\[\]]+)""")
LINES = 12  # of a trace that a card shows


@dataclass(frozen=True)
class Redactor:
    """Removes what identifies from a text: paths, and the site's own names of its patients."""

    names: frozenset[str] = frozenset()

    def __call__(self, text: str) -> str:
        """Return the text with placeholders in their place."""
        text = PATH.sub("[path]", text)
        for name in sorted(self.names, key=len, reverse=True):
            text = re.sub(rf"(?<![A-Za-z0-9]){re.escape(name)}(?![A-Za-z0-9])", "[patient]", text)
        return text


def unredacted(text: str) -> str:
    """Return a text as it is, for simulated sites and sites that allow it."""
    return text


def failure_card(site: str, request: Request, error: BaseException, message: str) -> FailureCard:
    """Return the card of an error at a site; `message` has been redacted there."""
    kind = type(error).__name__
    stage = type(request).__name__.lower()
    hint = HINTS.get(kind, "")
    return FailureCard(site, request.round, stage, kind, message, hint, _trace(error))


def _trace(error: BaseException) -> tuple[str, ...]:
    frames = extract_tb(error.__traceback__)[-LINES:]
    return tuple(f"{Path(frame.filename).name}:{frame.lineno} {frame.name}" for frame in frames)
