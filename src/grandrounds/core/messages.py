"""What a coordinator may ask of a site, what it may answer, and both as bytes (never pickle)."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import TypeAlias, get_args

from safetensors.torch import load, save
from torch import Tensor

from grandrounds.core.events import SiteReady
from grandrounds.core.serialization import from_plain
from grandrounds.core.weights import Weights


@dataclass(frozen=True, kw_only=True)
class LocalPlan:
    """How a site trains before it answers.

    `steps` above 0 counts batches instead of `epochs`. `prox` pulls towards the round's start
    (FedProx). `private_epochs` train what stays, before `epochs` train what is shared (FedRep).
    `controls` corrects the drift of each gradient (SCAFFOLD). `personal` trains a model of the
    site's own beside the shared one, pulled towards it with that strength (Ditto). `carries` sends
    the optimiser's state along with the weights that it belongs to. `contrast` pushes off what was
    sent last: by all sites, or by the site itself, as `negatives` says (FedMRI). `validates` scores
    what was trained on the site's validation cases.
    """

    epochs: int = 1
    steps: int = 0
    prox: float = 0.0
    private_epochs: int = 0
    controls: bool = False
    personal: float | None = None
    carries: bool = False
    contrast: float = 0.0
    negatives: str = "all"
    validates: bool = False


@dataclass(frozen=True, kw_only=True)
class Describe:
    """Say who you are: counts only, and the rounds whose private state you hold."""

    round: int = 0


@dataclass(frozen=True, kw_only=True)
class Train:
    """Train from these weights and your private state of the round `since`; send what is shared.

    `keep` names the older round whose private state must survive (the best one so far).
    """

    round: int
    since: int
    plan: LocalPlan
    keep: int = 0
    weights: Weights = field(default_factory=dict[str, Tensor])


@dataclass(frozen=True, kw_only=True)
class Merge:
    """Combine the updates that these peers delivered to you, in this order."""

    round: int
    since: int
    peers: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Adopt:
    """Keep the merged model that this leader delivered to you."""

    round: int
    leader: str
    keep: int = 0


@dataclass(frozen=True, kw_only=True)
class Tune:
    """Train these weights, and all that is yours, on your data for yourself alone."""

    round: int
    since: int
    epochs: int
    weights: Weights = field(default_factory=dict[str, Tensor])


@dataclass(frozen=True, kw_only=True)
class Evaluate:
    """Score these weights with your private state of the round `since`.

    `cases` asks for every case's score; `after` names the site whose turn just ended; `tuned`
    scores what `Tune` made.
    """

    round: int
    since: int
    split: str
    cases: bool = False
    after: str = ""
    tuned: bool = False
    weights: Weights = field(default_factory=dict[str, Tensor])


@dataclass(frozen=True, kw_only=True)
class Forward:
    """Run your front on your next batch, and send what crosses the cut of the network.

    Step 0 begins a turn: it brings your part of the weights, which goes with your private state of
    the round `since`, and its reply says how many batches come. `keep` as in `Train`; `cases` as in
    the `Evaluate` that ends a turn whose `split` is not "train".
    """

    round: int
    since: int
    split: str = "train"
    step: int = 0
    plan: LocalPlan = field(default_factory=LocalPlan)
    keep: int = 0
    cases: bool = False
    weights: Weights = field(default_factory=dict[str, Tensor])


@dataclass(frozen=True, kw_only=True)
class Tail:
    """Run your end on what the server made of your batch; send the gradients of what came."""

    round: int
    step: int
    weights: Weights = field(default_factory=dict[str, Tensor])


@dataclass(frozen=True, kw_only=True)
class Backward:
    """Backpropagate these gradients of what crossed the cut, and take your step.

    The `last` one ends a turn: send your part of what is shared. `losses` are the turn's, where the
    server found them.
    """

    round: int
    step: int
    last: bool = False
    losses: Mapping[str, float] = field(default_factory=dict[str, float])
    weights: Weights = field(default_factory=dict[str, Tensor])


@dataclass(frozen=True, kw_only=True)
class Finish:
    """Write your personal models: of the best round, and of the last one that you took part in."""

    round: int
    best: int


Request: TypeAlias = (
    Describe | Train | Merge | Adopt | Tune | Evaluate | Forward | Tail | Backward | Finish
)


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
    `digest` fingerprints the site's private state, which itself stays; `shared` the model that a
    leader merged of as many updates as `merged` says; `sent` and `received` count the bytes of
    tensors that travelled between sites or to the coordinator. `score` is how the model that the
    site just trained validates, where the plan asks for it and the site has cases to do so.
    """

    site: str
    round: int
    examples: int = 0
    cases: int = 0
    steps: int = 0
    digest: str = ""
    shared: str = ""
    merged: int = 0
    sent: int = 0
    received: int = 0
    seconds: float = 0.0
    score: float | None = None
    metrics: Mapping[str, float] = field(default_factory=dict[str, float])
    scores: tuple[CaseScore, ...] = ()
    rounds: tuple[int, ...] = ()
    ready: SiteReady | None = None
    weights: Weights = field(default_factory=dict[str, Tensor])

    def receipt(self, num_peers: int) -> "Reply":
        """Give the reply without its tensors, which went to so many other sites."""
        return replace(self, weights={}, sent=self.sent * num_peers)


Message: TypeAlias = Request | Reply
MESSAGE_KINDS: dict[str, type[Message]] = {kind.__name__: kind for kind in get_args(Message)}


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
    message = from_plain(MESSAGE_KINDS[header["kind"]], header["fields"])
    weights = load(data)
    return replace(message, weights=weights) if weights else message
