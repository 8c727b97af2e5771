"""What a site refuses leaves no trace in it: no file, no weight and no random number changes."""

import json
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from hashlib import sha256
from pathlib import Path

import pytest
import torch

from grandrounds.core.failures import Disclosure
from grandrounds.core.ledger import NOTES, LedgerEntry, read_ledger
from grandrounds.core.messages import (
    Adopt,
    Backward,
    Evaluate,
    Finish,
    Forward,
    Merge,
    Reply,
    Request,
    Tail,
    Train,
    Tune,
    decode,
    encode,
)
from grandrounds.core.run_folder import SiteFolder
from grandrounds.core.weights import Weights, digest, without_prefix
from grandrounds.engines.envelope import (
    READY,
    PeerEnvelope,
    ReplyEnvelope,
    RequestEnvelope,
    pack,
    unpack,
)
from grandrounds.engines.remote_site import SiteAgent
from grandrounds.runs.remote import serve_site, study_guard
from grandrounds.site.ledger import Ledger
from grandrounds.site.site import Site
from grandrounds.study.study import Study
from tests.helpers.federation import built, tiny
from tests.helpers.remote_sites import nowhere

pytestmark = pytest.mark.slow

LONG = 600.0  # seconds


def site_of(agent: SiteAgent) -> Site:
    site = agent._site
    assert isinstance(site, Site)
    return site


@dataclass
class Attacked:
    """The site alder of a run of two, behind its guard, after its first round; and who asks it."""

    agent: SiteAgent
    folder: Path
    study: Study
    model: Weights  # what the first round's reply brought
    private: str  # the name of a tensor that stays
    number: int = READY

    def ask(self, body: bytes, deliver_to: tuple[str, ...] = ()) -> ReplyEnvelope:
        self.number += 1
        envelope = RequestEnvelope(number=self.number, wait=LONG, body=body, deliver_to=deliver_to)
        return unpack(self.agent.answer(pack(envelope)), ReplyEnvelope)

    def traces(self) -> dict[str, str]:
        """Everything that a request could change: files but the log, weights, random numbers."""
        log = SiteFolder(self.folder / "sites" / "alder").ledger
        files = [path for path in self.folder.rglob("*") if path.is_file() and path != log]
        site = site_of(self.agent)
        held = without_prefix("", site.trainer.model.state_dict())
        return {
            **{str(path): sha256(path.read_bytes()).hexdigest() for path in files},
            **{f"{path} written": str(path.stat().st_mtime_ns) for path in files},
            "network": digest({name: tensor.clone() for name, tensor in held.items()}),
            "optimiser": digest(site.trainer.optimizer_state(lambda _: True)),
            "random numbers": sha256(torch.get_rng_state().numpy().tobytes()).hexdigest(),
            "mailbox": str(vars(site.mailbox)),
        }

    def log(self) -> list[LedgerEntry]:
        path = SiteFolder(self.folder / "sites" / "alder").ledger
        return [line.entry for line in read_ledger(path) if line.entry.asked not in NOTES]


@pytest.fixture(scope="module")
def attacked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Attacked]:
    study, folder = tiny("method.kind=ditto", "rounds=3", sites=2), tmp_path_factory.mktemp("site")
    start = built(study, tmp_path_factory.mktemp("start")).start.weights
    with ExitStack() as stack:
        agent = SiteAgent(
            serve_site(study, "alder", (), folder),
            nowhere,
            Disclosure("alder", study.names),
            guard=partial(study_guard, study),
            ledger=Ledger(SiteFolder(folder / "sites" / "alder").ledger),
        )
        stack.callback(agent.close)
        agent._answer.result()
        private = next(n for n in site_of(agent).trainer.model.state_dict() if n not in start)
        found = Attacked(agent, folder, study, start, private)
        answer = found.ask(encode(Train(round=1, since=0, weights=start)))
        assert answer.state == "done"
        reply = decode(answer.body)
        assert isinstance(reply, Reply)
        found.model = dict(reply.weights)
        yield found


NEXT = Train(round=2, since=1)
SCORE = Evaluate(round=1, since=1, split="validation")
OPEN = Forward(round=2, since=1)
EVERYONE = ("alder", "birch")

FOREIGN: dict[str, tuple[Request, tuple[str, ...]]] = {
    "a negative round": (replace(NEXT, round=-1, since=-2), ()),
    "round 0": (replace(NEXT, round=0, since=0), ()),
    "a round ahead": (replace(NEXT, round=3, since=2), ()),
    "a round beyond the last": (replace(NEXT, round=4, since=3), ()),
    "from the first weights again": (replace(NEXT, since=0), ()),
    "keeping a round to come": (replace(NEXT, keep=2), ()),
    "more epochs": (replace(NEXT, epochs=50), ()),
    "a single batch": (replace(NEXT, steps=1), ()),
    "no model": (replace(NEXT, weights={}), ()),
    "an update for another site": (NEXT, ("birch",)),
    "a merge": (Merge(round=1, since=0, peers=EVERYONE), EVERYONE),
    "an adoption": (Adopt(round=1, leader="birch"), ()),
    "a turn at a cut": (OPEN, ()),
    "a tail": (Tail(round=2, step=0), ()),
    "a step back": (Backward(round=2, step=0), ()),
    "tuning": (Tune(round=1, since=1, epochs=1), ()),
    "training cases": (replace(SCORE, split="train"), ()),
    "training cases one by one": (replace(SCORE, split="train", cases=True), ()),
    "validation cases one by one": (replace(SCORE, cases=True), ()),
    "scores of a round that is not held": (replace(SCORE, round=2, since=2), ()),
    "what was tuned": (replace(SCORE, split="test", cases=True, tuned=True), ()),
    "the end of a round that is not held": (Finish(round=2, best=1), ()),
    "a best round that is not held": (Finish(round=1, best=3), ()),
}


def with_model(request: Request, model: Weights) -> Request:
    """Bring the right model, so that nothing but what is tried is wrong."""
    has_model = isinstance(request, Train | Evaluate | Forward | Tune)
    return replace(request, weights=model) if has_model else request


def assert_refused_without_a_trace(
    attacked: Attacked, body: bytes, deliver_to: tuple[str, ...] = ()
) -> None:
    before, told = attacked.traces(), len(attacked.log())
    answer = attacked.ask(body, deliver_to)
    assert answer.state == "failed"
    assert json.loads(answer.body)["error"] == "Refused"
    assert attacked.traces() == before
    [entry] = attacked.log()[told:]
    assert entry.refused
    assert (entry.tensors, entry.bytes, entry.scores) == (0, 0, 0)


@pytest.mark.parametrize("name", FOREIGN)
def test_a_request_that_the_study_does_not_make_leaves_no_trace(name: str, attacked: Attacked):
    request, deliver_to = FOREIGN[name]
    bare = name == "no model"
    body = encode(request if bare else with_model(request, attacked.model))
    assert_refused_without_a_trace(attacked, body, deliver_to)


def spoiled(model: Weights, private: str) -> dict[str, Weights]:
    """Models that are not the study's."""
    name, tensor = next((n, t) for n, t in model.items() if t.dim() > 1)
    return {
        "a private tensor": {**model, private: torch.ones(2)},
        "a tensor of no network": {**model, "backdoor.weight": torch.ones(2)},
        "another shape": {**model, name: torch.ones(1)},
        "another type": {**model, name: tensor.double()},
        "integers": {**model, name: tensor.long()},
        "NaN": {**model, name: torch.full_like(tensor, torch.nan)},
        "an infinity": {**model, name: torch.full_like(tensor, torch.inf)},
        "a tensor too few": {n: t for n, t in model.items() if n != name},
        "a set that no method has": {**model, f"control/{name}": tensor.clone()},
        "the personal model": {**model, f"personal/{name}": tensor.clone()},
        "moments that stay": {**model, f"optimizer//{name}/exp_avg": tensor.clone()},
        "what a task remembers": {**model, "memory/pool": tensor.clone()},
    }


@pytest.mark.parametrize("name", spoiled({"a": torch.ones(2, 2)}, "b"))
def test_a_model_that_is_not_the_study_s_leaves_no_trace(name: str, attacked: Attacked):
    model = spoiled(attacked.model, attacked.private)[name]
    assert_refused_without_a_trace(attacked, encode(replace(NEXT, weights=model)))


@pytest.mark.parametrize("body", [b"\x80\x04]\x94.", b"{}", b"\xff" * 64, b"[" * 10_000])
def test_what_cannot_be_read_leaves_no_trace(body: bytes, attacked: Attacked):
    assert_refused_without_a_trace(attacked, body)


def test_a_reply_in_place_of_a_request_leaves_no_trace(attacked: Attacked):
    assert_refused_without_a_trace(attacked, encode(Reply(site="birch", round=2)))


def test_a_delivery_in_a_star_leaves_no_trace(attacked: Attacked):
    before = attacked.traces()
    update = Reply(site="birch", round=1, weights=attacked.model)
    answer = unpack(
        attacked.agent.receive_update(pack(PeerEnvelope(body=encode(update)))), ReplyEnvelope
    )
    assert answer.state == "refused"
    assert attacked.traces() == before


def test_after_all_that_the_site_trains_its_next_round_as_if_nothing_had_been(
    attacked: Attacked, tmp_path: Path
):
    """Run last of this file: it goes on with the site that was attacked."""
    for request, deliver_to in FOREIGN.values():
        attacked.ask(encode(request), deliver_to)
    answer = attacked.ask(encode(replace(NEXT, weights=attacked.model)))
    assert answer.state == "done", answer.body
    quiet = built(attacked.study, tmp_path).sites.sites[0]
    start = built(attacked.study, tmp_path / "start").start.weights
    first = quiet.answer(Train(round=1, since=0, weights=start))
    assert digest(dict(first.weights)) == digest(attacked.model)
    second = quiet.answer(replace(NEXT, weights=attacked.model))
    reply = decode(answer.body)
    assert isinstance(reply, Reply)
    assert reply.digest == second.digest
    assert digest(dict(reply.weights)) == digest(dict(second.weights))
