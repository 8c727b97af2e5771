"""Every error that a user can meet derives from `GrandRoundsError`.

    GrandRoundsError
    ├── BadInput             what the user gave is wrong; exit code 2, nothing trained, nothing lost
    │   ├── BadStudy         the study file, an override or an argument
    │   ├── BadSite          a site file, or a site that cannot deliver the common data elements
    │   ├── BadImage         an image file
    │   └── BadFolder        a run folder that is missing, incomplete or of another study
    ├── LedgerBroken         a ledger is not what was written; exit code 1
    └── RunFailed            the run stopped; exit code 1
        ├── SiteFailed       ... because of one site; carries the failure card
        ├── Stopped          ... because a person stopped it
        ├── BadUpdate        ... because updates do not fit together
        └── DiskFailed       ... because the disk refused a checkpoint

Each message says what was found, where, and what would be right. It is for people at the site; what
others may be told is the error's `safe` sentence.
"""

from dataclasses import dataclass

from grandrounds.core.sentence import Sentence


class GrandRoundsError(Exception):
    """The root: catch this to catch everything that this package raises on purpose.

    Where it is raised at a site, its message stays there, and `safe` leaves; without it, only the
    class of the error does.
    """

    def __init__(self, *message: object, safe: Sentence | None = None) -> None:
        super().__init__(*message)
        self.safe = safe


class BadInput(GrandRoundsError):  # noqa: N818 - reads as what it says
    """The user's input is wrong; one clear sentence, exit code 2."""


class BadStudy(BadInput):
    """The study file, an override or an argument is wrong."""


def require(holds: bool, sentence: str) -> None:
    """Raise `BadStudy` with the sentence unless a condition holds."""
    if not holds:
        raise BadStudy(sentence)


class BadSite(BadInput):
    """A site file is wrong, or the site cannot deliver the common data elements."""


class BadImage(BadInput):
    """An image cannot be used."""


class BadFolder(BadInput):
    """A run folder is missing, incomplete, or belongs to another study."""


class LedgerBroken(GrandRoundsError):  # noqa: N818 - reads as what it says
    """A line of a ledger was changed, removed, moved, repeated or cut, or ledgers disagree."""


class RunFailed(GrandRoundsError):  # noqa: N818 - reads as what it says
    """The run stopped before its end; what was saved can be resumed."""


class Stopped(RunFailed):
    """A person stopped the run."""


class BadUpdate(RunFailed):
    """Updates of different sites do not fit together."""


class DiskFailed(RunFailed):
    """The disk refused to save what must not be lost."""


class WrongSignature(ValueError):  # noqa: N818 - reads as what it says
    """A signature is not by the key of a certificate of this federation that is valid now.

    Its message is a sentence of the program that any party may be told.
    """


@dataclass(frozen=True)
class FailureCard:
    """Says which site failed, when, at what, and what may help; `trace` has no folder names."""

    site: str
    round: int
    stage: str
    error: str
    message: str
    hint: str = ""
    trace: tuple[str, ...] = ()

    def __str__(self) -> str:
        """Return one line for people."""
        hint = f". {self.hint}" if self.hint else ""
        return (
            f"site '{self.site}' failed in round {self.round} ({self.stage}): "
            f"{self.error}: {self.message.rstrip('.')}{hint}"
        )


class SiteFailed(RunFailed):
    """One site could not answer; the run stops instead of going on with a subset."""

    def __init__(self, card: FailureCard) -> None:
        super().__init__(str(card))
        self.card = card

    def __reduce__(self) -> tuple[type["SiteFailed"], tuple[FailureCard]]:
        """Let a pickled error carry the card to another process, and not only its text."""
        return SiteFailed, (self.card,)
