"""What a coordinator may ask of a site, what it may answer, and both as bytes (never pickle)."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import TypeAlias, get_args

from safetensors.torch import load, save
from torch import Tensor

from grandrounds.events import SiteReady
from grandrounds.plain import revive
from grandrounds.weights import Weights


@dataclass(frozen=True, kw_only=True)
class LocalPlan:
    """How a site trains before it answers."""

    epochs: int = 1


@dataclass(frozen=True, kw_only=True)
class Describe:
    """Say who you are: counts only, and the rounds whose private state you hold."""

    round: int = 0


@dataclass(frozen=True, kw_only=True)
class Train:
    """Train from these weights and your private state of the round before; send what is shared.

    `keep` names the older round whose private state must survive (the best one so far).
    """

    round: int
    plan: LocalPlan
    keep: int = 0
    weights: Weights = field(default_factory=dict[str, Tensor])


@dataclass(frozen=True, kw_only=True)
class Evaluate:
    """Score these weights with your private state of this round.

    `cases` asks for every case's score.
    """

    round: int
    split: str
    cases: bool = False
    weights: Weights = field(default_factory=dict[str, Tensor])


@dataclass(frozen=True, kw_only=True)
class Finish:
    """Write your personal models: private weights of the best and of the last round."""

    round: int
    best: int


Request: TypeAlias = Describe | Train | Evaluate | Finish


@dataclass(frozen=True, kw_only=True)
class CaseScore:
    """One test case: `patient` and `case` are pseudonyms that only the site can resolve."""

    site: str
    patient: str
    case: str
    task: str
    values: Mapping[str, float]


@dataclass(frozen=True, kw_only=True)
class Reply:
    """A site's answer; what a request did not ask for is empty.

    `examples` is n_k, the site's training examples, in every reply; `cases` counts what was scored;
    `digest` fingerprints the site's private state, which itself stays.
    """

    site: str
    round: int
    examples: int = 0
    cases: int = 0
    steps: int = 0
    digest: str = ""
    seconds: float = 0.0
    metrics: Mapping[str, float] = field(default_factory=dict[str, float])
    scores: tuple[CaseScore, ...] = ()
    rounds: tuple[int, ...] = ()
    ready: SiteReady | None = None
    weights: Weights = field(default_factory=dict[str, Tensor])


Message: TypeAlias = Request | Reply
KINDS: dict[str, type[Message]] = {kind.__name__: kind for kind in get_args(Message)}


def encode(message: Message) -> bytes:
    """Pack a message: its weights as safetensors, all else as JSON in their header.

    Bits and dtypes stay intact.
    """
    weights: Weights = getattr(message, "weights", {})
    fields = asdict(replace(message, weights={}) if weights else message)
    fields.pop("weights", None)
    header = {"kind": type(message).__name__, "fields": fields}
    return save(weights, {"message": json.dumps(header)})


def decode(data: bytes) -> Message:
    """Unpack a message. The inverse of `encode`."""
    length = int.from_bytes(data[:8], "little")
    header = json.loads(json.loads(data[8 : 8 + length])["__metadata__"]["message"])
    message = revive(KINDS[header["kind"]], header["fields"])
    weights = load(data)
    return replace(message, weights=weights) if weights else message
