"""A coordinator sends requests to sites and gets replies; both are encoded, never pickled."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from hashlib import sha256
from typing import Any, TypeAlias, cast, get_args

from safetensors.torch import load, save
from torch import Tensor

from grandrounds.core.events import SiteReady
from grandrounds.core.ledger import LedgerHead
from grandrounds.core.names import check_name
from grandrounds.core.serialization import from_plain
from grandrounds.core.site_statistics import SiteStatistics
from grandrounds.core.weights import Weights


@dataclass(frozen=True, kw_only=True)
class Describe:
    """Asks a site for its counts, and for the rounds whose private state it has saved."""

    round: int = 0


@dataclass(frozen=True, kw_only=True)
class Train:
    """Asks a site to train from these weights and its private state of the round `since`.

    The reply brings what is shared. `epochs` = 0 takes the study's; `steps` above 0 counts batches
    instead. `keep` names the older round whose private state must stay saved (the best one so far).
    `after` names the leader of a group of this round whose merged model, which that site delivered,
    is where training starts.
    """

    round: int
    since: int
    epochs: int = 0
    steps: int = 0
    keep: int = 0
    after: str = ""
    weights: Weights = field(default_factory=dict[str, Tensor])


@dataclass(frozen=True, kw_only=True)
class Merge:
    """Asks a leader to combine the updates that these peers delivered to it, in this order.

    `after` is as in `Train`: the leader of the group whose merged model the peers started from.
    """

    round: int
    since: int
    peers: tuple[str, ...]
    after: str = ""


@dataclass(frozen=True, kw_only=True)
class Adopt:
    """Asks a site to save the merged model that this leader delivered to it."""

    round: int
    leader: str
    keep: int = 0


@dataclass(frozen=True, kw_only=True)
class Tune:
    """Asks a site to fine-tune these weights, with its private ones, for itself alone."""

    round: int
    since: int
    epochs: int
    weights: Weights = field(default_factory=dict[str, Tensor])


@dataclass(frozen=True, kw_only=True)
class Evaluate:
    """Asks a site to score these weights with its private state of the round `since`.

    `cases` asks for every case's score; `after` names the site whose turn just ended; `tuned`
    asks to score the fine-tuned model instead.
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
    """Asks a site to run the head of a cut network on its next batch; returns the activations.

    Step 0 begins a turn: it brings the site's part of the weights, which goes with its private
    state of the round `since`, and its reply says how many batches there are. `keep` is as in
    `Train`; `cases` as in the `Evaluate` that ends a turn whose `split` is not "train".
    """

    round: int
    since: int
    split: str = "train"
    step: int = 0
    keep: int = 0
    cases: bool = False
    weights: Weights = field(default_factory=dict[str, Tensor])


@dataclass(frozen=True, kw_only=True)
class Tail:
    """Asks a site to run the tail on the server's activations; returns their gradients."""

    round: int
    step: int
    weights: Weights = field(default_factory=dict[str, Tensor])


@dataclass(frozen=True, kw_only=True)
class Backward:
    """Asks a site to backpropagate these gradients at the cut, and to take its optimiser step.

    The `last` one ends a turn: its reply brings the site's part of what is shared. `losses` are the
    turn's, where the server computed them.
    """

    round: int
    step: int
    last: bool = False
    losses: Mapping[str, float] = field(default_factory=dict[str, float])
    weights: Weights = field(default_factory=dict[str, Tensor])


@dataclass(frozen=True, kw_only=True)
class AdvertiseKeys:
    """Asks a site for fresh public keys, with which it will mask its update of a round.

    Each one begins a new attempt at the round; keys of an earlier one are forgotten.
    """

    round: int


@dataclass(frozen=True, kw_only=True)
class ShareKeys:
    """Asks a site for shares of its private keys, sealed for each of the sites whose keys come."""

    round: int
    weights: Weights = field(default_factory=dict[str, Tensor])


@dataclass(frozen=True, kw_only=True)
class Unmask:
    """Asks a site for the shares that take the masks off the sum of the survivors' updates.

    `weights` are what the others sealed for this site when keys were shared.
    """

    round: int
    survivors: tuple[str, ...]
    weights: Weights = field(default_factory=dict[str, Tensor])


@dataclass(frozen=True, kw_only=True)
class Finish:
    """Asks a site to write its models of the best round, and of the last one it took part in."""

    round: int
    best: int


@dataclass(frozen=True, kw_only=True)
class Survey:
    """Asks a site for its statistics, before anyone trains and in a job of their own."""

    round: int = 0


KeyRequest: TypeAlias = AdvertiseKeys | ShareKeys | Unmask
Request: TypeAlias = (
    Describe
    | Train
    | Merge
    | Adopt
    | Tune
    | Evaluate
    | Forward
    | Tail
    | Backward
    | Finish
    | Survey
    | KeyRequest
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
    leader merged from as many updates as `merged` says; `sent` and `received` count the bytes of
    tensors that travelled between sites or to the coordinator; `full` those of the site's update
    before guards touched it, 0 where it has none. `score` is the validation score of
    the model that the site just trained, where the method asks for it and the site has such cases.
    `changed` says that the site's data is not what it trained on when it saved the last of its
    `rounds`. `epsilon` is what the site revealed in the run so far, `exhausted` says that the
    privacy budget of its data allows no further round; without differential privacy there is
    neither. `statistics` answer a `Survey` alone; otherwise they are not in the bytes either.
    `ledger` is where the site's ledger stands after the line of this reply.
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
    full: int = 0
    seconds: float = 0.0
    score: float | None = None
    metrics: Mapping[str, float] = field(default_factory=dict[str, float])
    scores: tuple[CaseScore, ...] = ()
    rounds: tuple[int, ...] = ()
    ready: SiteReady | None = None
    changed: bool = False
    epsilon: float | None = None
    exhausted: bool = False
    weights: Weights = field(default_factory=dict[str, Tensor])
    statistics: SiteStatistics | None = None
    ledger: LedgerHead | None = None

    def receipt(self, num_peers: int) -> "Reply":
        """Return the reply without its tensors, which went to `num_peers` other sites."""
        return replace(self, weights={}, sent=self.sent * num_peers)


Message: TypeAlias = Request | Reply
MESSAGE_KINDS: dict[str, type[Message]] = {kind.__name__: kind for kind in get_args(Message)}


def encode(message: Message) -> bytes:
    """Return a message as bytes: its weights as safetensors, all else as JSON in their header.

    Bits and dtypes stay intact.
    """
    weights: Weights = getattr(message, "weights", {})
    fields = asdict(replace(message, weights={}) if weights else message)
    fields.pop("weights", None)
    for name in ("statistics", "ledger", "epsilon"):
        if fields.get(name) is None:
            fields.pop(name, None)
    if not fields.get("exhausted"):
        fields.pop("exhausted", None)
    header = {"kind": type(message).__name__, "fields": fields}
    return save(weights, {"message": json.dumps(header)})


def message_digest(reply: Reply, of_weights: str) -> str:
    """Return the SHA-256, in hex, of all that is in a reply, whichever party computes it.

    `of_weights` is the digest of its tensors, empty where it has none; where the ledger stands is
    no part of it. Numbers count by their value: JSON does not tell 1 from 1.0 of a float.
    """
    fields = asdict(replace(reply, weights={}, ledger=None))
    text = json.dumps(_by_value(fields) | {"weights": of_weights}, sort_keys=True)
    return sha256(text.encode()).hexdigest()


def _by_value(value: Any) -> Any:
    if isinstance(value, Mapping):
        items = cast(Mapping[str, Any], value).items()
        return {name: _by_value(item) for name, item in items}
    if isinstance(value, list | tuple):
        return [_by_value(item) for item in cast(Sequence[Any], value)]
    return float(value) if isinstance(value, int) and not isinstance(value, bool) else value


def decode(data: bytes) -> Message:
    """Return the message that `encode` made these bytes of.

    Raises `ValueError` where a name in it is none.
    """
    length = int.from_bytes(data[:8], "little")
    header = json.loads(json.loads(data[8 : 8 + length])["__metadata__"]["message"])
    message = from_plain(MESSAGE_KINDS[header["kind"]], header["fields"])
    for name in _sites_named(message):
        check_name(name, "site", ValueError)
    weights = load(data)
    return replace(message, weights=weights) if weights else message


def _sites_named(message: Message) -> set[str]:
    """Return the names of sites in a message; its reader may make folders of them."""
    match message:
        case Reply():
            ready = [message.ready.site] if message.ready else []
            told = [message.statistics.site] if message.statistics else []
            return {message.site, *ready, *told, *(score.site for score in message.scores)}
        case Merge():
            return {*message.peers, message.after} - {""}
        case Adopt():
            return {message.leader}
        case Unmask():
            return set(message.survivors)
        case Train() | Evaluate():
            return {message.after} - {""}
        case _:
            return set()
