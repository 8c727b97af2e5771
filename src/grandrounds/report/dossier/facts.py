"""What a dossier tells of a run is gathered here, from its ledgers and its journal."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from grandrounds.core.errors import LedgerBroken
from grandrounds.core.events import (
    Event,
    RoundFinished,
    RunFinished,
    RunStarted,
    SiteMissed,
    SiteReady,
    SiteTrained,
    UpdatesJudged,
)
from grandrounds.core.journal import read_journal, without_superseded
from grandrounds.core.ledger import DELIVER, LedgerEntry, VerifySignature, listings, read_ledger
from grandrounds.core.run_folder import RunFolder
from grandrounds.report.analysis.folder import PrivacyFacts, read_study_file
from grandrounds.report.analysis.ledgers import LedgersChecked, check_ledgers, ledger_files

KINDS: Mapping[str, str] = {
    "open": "its versions, and that it accepted the study",
    "describe": "how many patients, sessions and slices it has, as counts",
    "train": "the shared part of the model, as it trained it in a round",
    "merge": "the model that it merged from the updates of all",
    "adopt": "that it holds the merged model, as a digest",
    "evaluate": "how well the model does on its own cases: means, or one row of scores for a case",
    "tune": "that it fine-tuned the model for itself: losses alone",
    "forward": "the activations of a batch at the cut of the network",
    "tail": "the gradients of a batch at the cut of the network",
    "backward": "the end of a training step; with the last, its part of the model",
    "advertisekeys": "fresh public keys, for the masks of its update",
    "sharekeys": "parts of its own keys, each sealed for another hospital",
    "unmask": "the parts of keys that take the masks off the sum of the updates",
    "finish": "that it has written its models to its own disk",
    "survey": "statistics of its patients, as counts and rounded shares",
}
_WORDS = "%d %B %Y, %H:%M UTC"


@dataclass(frozen=True)
class Sending:
    """All messages of one kind that left one site."""

    asked: str
    messages: int
    tensors: int
    bytes: int
    scores: int
    to: tuple[str, ...]
    guards: tuple[str, ...]

    @property
    def meaning(self) -> str:
        """Say in plain words what such a message holds."""
        return KINDS.get(self.asked, "a message of a kind that this version does not know")


@dataclass(frozen=True)
class SiteDossier:
    """What left one site; `own` tells whether that is from its own ledger or the coordinator's.

    `rounds` counts those that it trained in; `missed` and `unusual` are sentences. `epsilon` is the
    largest of its lines, None where nothing is spent.
    """

    name: str
    own: bool
    sendings: tuple[Sending, ...]
    refused: int
    rounds: int
    missed: tuple[str, ...]
    unusual: tuple[str, ...]
    epsilon: float | None

    @property
    def messages(self) -> int:
        """Count the messages that left."""
        return sum(each.messages for each in self.sendings)

    @property
    def bytes(self) -> int:
        """Count the bytes of tensors and statistics that left."""
        return sum(each.bytes for each in self.sendings)


@dataclass(frozen=True)
class Dossier:
    """What the page and the crate of a dossier tell.

    `broken` says what is wrong with the ledgers; `checked` is what their check came to where
    nothing is. `named` maps each tensor that left, under any name, to its types and shapes.
    `privacy` is there where the study has differential privacy.
    """

    run: Path
    started: RunStarted
    began: str
    ended: str
    finished: bool
    rounds: int
    checked: LedgersChecked | None
    broken: str
    sites: tuple[SiteDossier, ...]
    named: Mapping[str, str]
    signed: bool
    simulated: tuple[str, ...]
    ledgers: Mapping[str, Path]
    privacy: PrivacyFacts | None = None


def read_dossier(folder: Path, verify: VerifySignature) -> Dossier:
    """Gather what a dossier tells of a run. Raises `BadFolder` where it has no ledger or journal.

    A ledger that is not what was written is told of, and no error: who reads the dossier must know.
    """
    central, found = ledger_files(folder)
    stamped = without_superseded(read_journal(RunFolder(folder).journal))
    events = [event for _, event in stamped]
    started = next(event for event in reversed(events) if isinstance(event, RunStarted))
    checked, broken = _verdict(folder, verify)
    files = {**({"coordinator": central} if central else {}), **found}
    entries = {name: [line.entry for line in read_ledger(path)] for name, path in files.items()}
    named: dict[str, str] = {}
    for path in files.values():
        for listed in listings(list(read_ledger(path))).values():
            named |= listed
    ready = [event for event in events if isinstance(event, SiteReady)]
    told = (_site(name, entries, events) for name in started.sites)
    return Dossier(
        run=folder,
        started=started,
        began=_when(stamped[0][0]),
        ended=_when(stamped[-1][0]),
        finished=any(isinstance(event, RunFinished) for event in events),
        rounds=sum(isinstance(event, RoundFinished) for event in events),
        checked=checked,
        broken=broken,
        sites=tuple(told),
        named=named,
        signed=bool(checked) and any(ledger.signed for ledger in checked.ledgers),
        simulated=tuple(dict.fromkeys(e.site for e in ready if e.simulated)),
        ledgers=files,
        privacy=read_study_file(RunFolder(folder)).privacy,
    )


def _when(moment: float) -> str:
    return datetime.fromtimestamp(moment, UTC).strftime(_WORDS)


def _verdict(folder: Path, verify: VerifySignature) -> tuple[LedgersChecked | None, str]:
    try:
        return check_ledgers(folder, verify), ""
    except LedgerBroken as error:
        return None, str(error).replace(f"{folder}/", "")


def _site(
    name: str, entries: Mapping[str, Sequence[LedgerEntry]], events: Sequence[Event]
) -> SiteDossier:
    own = name in entries
    lines = entries[name] if own else [e for e in entries.get("coordinator", ()) if e.who == name]
    left = [entry for entry in lines if entry.left]
    spent = [entry.epsilon for entry in left if entry.epsilon is not None]
    missed = (event for event in events if isinstance(event, SiteMissed) and event.site == name)
    judged = [event for event in events if isinstance(event, UpdatesJudged)]
    odd = [f"round {e.round}: {e.unusual[name]}" for e in judged if name in e.unusual]
    out = [f"round {e.round}: left out of the mean" for e in judged if name in e.left_out]
    trained = {e.round for e in events if isinstance(e, SiteTrained) and e.site == name}
    return SiteDossier(
        name=name,
        own=own,
        sendings=_sendings(left),
        refused=sum(bool(entry.refused) for entry in lines),
        rounds=len(trained),
        missed=tuple(f"round {event.round}: {event.error}" for event in missed),
        unusual=(*odd, *out),
        epsilon=max(spent, default=None),
    )


def _sendings(left: Sequence[LedgerEntry]) -> tuple[Sending, ...]:
    kinds = Counter(entry.asked for entry in left if entry.asked != DELIVER)
    return tuple(_sending(kind, [e for e in left if e.asked == kind]) for kind in kinds)


def _sending(kind: str, entries: Sequence[LedgerEntry]) -> Sending:
    return Sending(
        asked=kind,
        messages=len(entries),
        tensors=max(entry.tensors for entry in entries),
        bytes=sum(entry.bytes for entry in entries),
        scores=sum(entry.scores for entry in entries),
        to=tuple(sorted({name for entry in entries for name in entry.to})),
        guards=tuple(dict.fromkeys(name for entry in entries for name in entry.guards)),
    )
