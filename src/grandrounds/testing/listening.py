"""All that is said in a run is overheard, and held against its bytes and against the policy."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import cast

import torch
from torch import Tensor

from grandrounds.algorithms.topology import EVERYONE, Links, Quorum, Sites
from grandrounds.core.errors import RunFailed
from grandrounds.core.messages import Message, Reply, Request, decode, encode
from grandrounds.core.weights import Weights
from grandrounds.engines.in_process import InProcessEngine
from grandrounds.engines.remote_site import check_texts
from grandrounds.engines.reply_guard import ReplyGuard
from grandrounds.runs.build import Federation, make_blueprint
from grandrounds.runs.remote import reply_guard, study_guard
from grandrounds.site.guard import Refused, StudyGuard
from grandrounds.study.file import Table
from grandrounds.testing.trial import Trial, said_by, same_bits


@dataclass
class Overheard:
    """What was said in a run, as far as it is not what it should be.

    `wire` says which bytes were not those of their tensors, `policy` what was sent or came beside
    the policy; `up` and `down` are the names of sets that travelled.
    """

    wire: list[str] = field(default_factory=list[str])
    policy: list[str] = field(default_factory=list[str])
    up: set[str] = field(default_factory=set[str])
    down: set[str] = field(default_factory=set[str])


@dataclass(frozen=True)
class ListeningEngine:
    """Sites of this process; all that is said to them and by them is held against the study.

    Without `guards` nothing is: pooled data have no policy.
    """

    sites: InProcessEngine
    overheard: Overheard
    guards: Mapping[str, StudyGuard]
    reply_guard: ReplyGuard | None
    private: frozenset[str]

    links = Links.MESH

    @property
    def names(self) -> tuple[str, ...]:
        """Return the roster."""
        return self.sites.names

    def ask(
        self,
        requests: Mapping[str, Request],
        *,
        deliver_to: Sequence[str] = (),
        quorum: Quorum = EVERYONE,
    ) -> list[Reply]:
        """Let the sites answer, and listen."""
        for site, request in requests.items():
            self._hear_request(site, request, deliver_to)
        replies = self.sites.ask(requests, deliver_to=deliver_to, quorum=quorum)
        for reply in replies:
            self._hear_reply(requests[reply.site], reply)
        return replies

    def _hear_request(self, site: str, request: Request, deliver_to: Sequence[str]) -> None:
        where = f"what site '{site}' is sent in round {request.round}"
        self._hear_bytes(where, request)
        self.overheard.down |= _sets(request)
        try:
            if site in self.guards:
                self.guards[site].check(request, deliver_to)
        except Refused as refusal:
            self.overheard.policy.append(f"{where} is not what the policy says: {refusal}")

    def _hear_reply(self, request: Request, reply: Reply) -> None:
        where = f"what leaves site '{reply.site}' in round {reply.round}"
        self._hear_bytes(where, reply)
        self.overheard.up |= _sets(reply)
        for problem in filter(None, self._problems(request, reply)):
            self.overheard.policy.append(f"{where} is not what the policy says: {problem}")

    def _problems(self, request: Request, reply: Reply) -> Iterator[str]:
        if reply.site not in self.guards or self.reply_guard is None:
            return
        for name in reply.weights:
            if name.rpartition("/")[2] in self.private:
                yield f"'{name}' is of a private group"
        yield _refusal(self.guards[reply.site], request, reply)
        yield self.reply_guard(request, reply, False)
        yield _untold(reply, self.sites)

    def _hear_bytes(self, where: str, message: Message) -> None:
        if problem := wire_problem(message):
            self.overheard.wire.append(f"{where} {problem}")


def _sets(message: Message) -> set[str]:
    weights: Weights = getattr(message, "weights", {})
    return {name.partition("/")[0] for name in weights if "/" in name}


def _refusal(guard: StudyGuard, request: Request, reply: Reply) -> str:
    try:
        guard.check_reply(request, reply)
    except Refused as refusal:
        return str(refusal)
    return ""


def _untold(reply: Reply, sites: InProcessEngine) -> str:
    [site] = [site for site in sites.sites if site.name == reply.site]
    try:
        check_texts(reply, site.disclosure)
    except RunFailed as error:
        return str(error)
    return ""


def listening(trial: Trial, federation: Federation[Sites], overheard: Overheard) -> ListeningEngine:
    """Return a federation's sites with a listener, and with the guards of a real federation."""
    sites, study = federation.sites, trial.study
    assert isinstance(sites, InProcessEngine)
    sharing = federation.method.sharing()
    if sharing.pooled:
        return ListeningEngine(sites, overheard, {}, None, frozenset())
    plan = trial.plan()
    groups = plan.task.groups(plan.model)
    names = [name for name, _ in plan.model.named_parameters()]
    private = {n for group in sharing.private for n in names if groups[group](n)}
    guards = {site.name: study_guard(study, site) for site in sites.sites}
    replies = reply_guard(make_blueprint(plan, study.machine()))
    return ListeningEngine(sites, overheard, guards, replies, frozenset(private))


def wire_problem(message: Message) -> str:
    """Return how a message's bytes are not its tensors beside JSON; empty where they are."""
    weights: Weights = getattr(message, "weights", {})
    try:
        data = encode(message)
        arrived, again = _bytes_by_name(data), decode(data)
    except Exception as error:  # of whatever a method put into its message
        return f"cannot be sent as bytes: {said_by(error)}"
    odd = [name for name, tensor in weights.items() if arrived.get(name) != _bytes_of(tensor)]
    odd += sorted(arrived.keys() - weights.keys())
    if odd:
        return f"has other bytes than '{odd[0]}'"
    back: Weights = getattr(again, "weights", {})
    lost = [name for name, tensor in weights.items() if not same_bits(tensor, back.get(name))]
    if lost:
        return f"comes with another '{lost[0]}' out of its bytes"
    return "" if encode(again) == data else "comes as another message out of its bytes"


def _bytes_of(tensor: Tensor) -> bytes:
    return tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def _bytes_by_name(data: bytes) -> dict[str, bytes]:
    """Part a message into the bytes of its tensors, by hand. Raises `ValueError` for any others."""
    start = 8 + int.from_bytes(data[:8], "little")
    header = cast(dict[str, Table], json.loads(data[8:start]))
    header.pop("__metadata__")
    spans = {name: entry["data_offsets"] for name, entry in header.items()}
    parts = {name: data[start + first : start + end] for name, (first, end) in spans.items()}
    if sum(map(len, parts.values())) != len(data) - start:
        raise ValueError("some bytes belong to no tensor")
    return parts
