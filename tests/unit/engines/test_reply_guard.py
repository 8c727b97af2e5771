"""What a coordinator refuses to believe: every malformed or dishonest reply is a failure card."""

import json
import struct
from dataclasses import asdict, replace

import pytest
import torch

from grandrounds.algorithms.policy import TensorPolicy
from grandrounds.algorithms.sharing import Sharing
from grandrounds.algorithms.topology import EVERYONE, Quorum
from grandrounds.core.errors import FailureCard, SiteFailed
from grandrounds.core.events import SiteReady
from grandrounds.core.ledger import LedgerHead
from grandrounds.core.messages import (
    CaseScore,
    Describe,
    Evaluate,
    Reply,
    Request,
    Train,
    encode,
    message_digest,
)
from grandrounds.core.weights import Weights, digest
from grandrounds.engines.envelope import ReplyEnvelope, RequestEnvelope, pack, unpack
from grandrounds.engines.remote import RemoteEngine, SiteConnection, Timeouts
from grandrounds.engines.reply_guard import ReplyGuard

QUICK = Timeouts(poll=0.02, silence=0.5, start=0.5, connect_every=0.01, pause=0.01, deadline=0.3)
MODEL: Weights = {"body.weight": torch.ones(2, 3)}
OTHER = torch.ones(2, 3)
POLICY = TensorPolicy(
    {"body.weight": (torch.Size((2, 3)), torch.float32)},
    frozenset({"head.weight"}),
    Sharing(sends=("control",)),
    sites=("alder", "birch"),
)
TRAIN = Train(round=1, since=0, weights=MODEL)
SCORE = Evaluate(round=1, since=1, split="test", cases=True, weights=MODEL)
HONEST = Reply(site="alder", round=1, examples=8, steps=2, metrics={"l1": 0.5}, weights=MODEL)
CASE = CaseScore(site="alder", patient="p", case="c", task="T1w->T2w", values={"psnr": 20.0})
SCORED = Reply(site="alder", round=1, examples=8, cases=1, metrics={"psnr": 20.0}, scores=(CASE,))
READY = SiteReady("birch", ("t",), {}, {}, {}, {}, simulated=False)


def engine(*bodies: bytes, state: str = "done", quorum: bool = False) -> RemoteEngine:
    """Alder, who describes itself honestly and then answers this; birch, who is honest."""

    def call(site: str, packed: bytes, timeout: float) -> bytes:
        asked = unpack(packed, RequestEnvelope)
        if asked.number == 1:
            body = encode(Reply(site=site, round=0, examples=8))
        elif site == "birch":
            body = encode(replace(HONEST, site="birch"))
        else:
            return raw(asked.number, state, bodies[0])
        return pack(ReplyEnvelope(number=asked.number, state="done", body=body))

    names = ("alder", "birch") if quorum else ("alder",)
    connections = tuple(SiteConnection(name, call, QUICK) for name in names)
    guard = ReplyGuard(3, dict.fromkeys(names, POLICY))
    built = RemoteEngine(connections, lambda *_: None, lambda _: None, guard)
    built.ask(dict.fromkeys(names, Describe()))
    return built


def raw(number: int, state: str, body: bytes) -> bytes:
    """A packed answer whose state may be any word."""
    envelope = ReplyEnvelope(number=number, state="done", body=body)
    object.__setattr__(envelope, "state", state)
    return pack(envelope)


def refusal(built: RemoteEngine, request: Request = TRAIN) -> FailureCard:
    with pytest.raises(SiteFailed) as failed:
        built.ask({"alder": request})
    return failed.value.card


def rewritten(reply: Reply, **fields: object) -> bytes:
    """An encoded reply whose fields may be of any type."""
    data = encode(reply)
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    message = json.loads(header["__metadata__"]["message"])
    message["fields"] |= fields
    header["__metadata__"]["message"] = json.dumps(message)
    front = json.dumps(header).encode()
    front += b" " * (-len(front) % 8)
    return struct.pack("<Q", len(front)) + front + data[8 + length :]


def kind(word: str) -> bytes:
    return encode(HONEST).replace(b'\\"kind\\": \\"Reply\\"', f'\\"kind\\": \\"{word}\\"'.encode())


def with_weights(**tensors: torch.Tensor) -> bytes:
    return encode(replace(HONEST, weights={n.replace("__", "/"): t for n, t in tensors.items()}))


BODY = "body.weight"
BODIES: dict[str, bytes] = {
    # bytes that are no message
    "nothing": b"",
    "a byte": b"\x00",
    "noise": bytes(range(256)) * 4,
    "text": b"hello, coordinator",
    "JSON": b'{"site": "alder"}',
    "a length without end": struct.pack("<Q", 2**63) + b"{}",
    "a length beyond the letter": struct.pack("<Q", 10_000) + b"{}",
    "a header of nulls": struct.pack("<Q", 64) + bytes(64),
    "a header that nests": struct.pack("<Q", 200_000) + b"[" * 200_000,
    "a reply that is cut": encode(HONEST)[:-5],
    "a reply that goes on": encode(HONEST) + b"more",
    "a pickle": b"\x80\x04\x95\x0f\x00\x00\x00\x00\x00\x00\x00\x8c\x05posix",
    "a request": encode(Describe()),
    "a message of no kind": kind("Rumor"),
    # fields of other types
    "examples as text": rewritten(HONEST, examples="8"),
    "examples as NaN": rewritten(HONEST, examples=float("nan")),
    "examples as 1e300": rewritten(HONEST, examples=1e300),
    "examples as a fraction": rewritten(HONEST, examples=8.5),
    "examples as a truth": rewritten(HONEST, examples=True),
    "examples as a list": rewritten(HONEST, examples=[8]),
    "examples as null": rewritten(HONEST, examples=None),
    "a round as text": rewritten(HONEST, round="1"),
    "a site as a number": rewritten(HONEST, site=1),
    "seconds as text": rewritten(HONEST, seconds="fast"),
    "a metric as text": rewritten(HONEST, metrics={"l1": "low"}),
    "metrics as a list": rewritten(HONEST, metrics=[1, 2]),
    "scores as a number": rewritten(HONEST, scores=3),
    "a score without a value": rewritten(HONEST, scores=[{"site": "alder"}]),
    "rounds as text": rewritten(HONEST, rounds="all"),
    "a field that there is not": rewritten(HONEST, mood="good"),
    "a description as text": rewritten(HONEST, ready="yes"),
    # numbers that cannot be
    "more examples than before": encode(replace(HONEST, examples=9)),
    "fewer examples": encode(replace(HONEST, examples=7)),
    "no examples": encode(replace(HONEST, examples=0)),
    "negative examples": encode(replace(HONEST, examples=-8)),
    "examples without end": encode(replace(HONEST, examples=10**30)),
    "negative steps": encode(replace(HONEST, steps=-1)),
    "negative bytes": encode(replace(HONEST, sent=-1)),
    "negative time": encode(replace(HONEST, seconds=-1.0)),
    "time without end": encode(replace(HONEST, seconds=float("inf"))),
    "no time": encode(replace(HONEST, seconds=float("nan"))),
    "a validation score that is none": encode(replace(HONEST, score=float("nan"))),
    "a round that the study has not": encode(replace(HONEST, rounds=(1, 99))),
    "a negative round": encode(replace(HONEST, rounds=(-1,))),
    # names
    "another site's name": encode(replace(HONEST, site="birch")),
    "no name": encode(replace(HONEST, site="")),
    "another round": encode(replace(HONEST, round=2)),
    "a description of another site": encode(replace(HONEST, ready=READY)),
    "a metric without end": encode(replace(HONEST, metrics={"m" * 9999: 1.0})),
    "a metric that cannot be printed": encode(replace(HONEST, metrics={"l1\x1b[2J": 1.0})),
    # tensors
    "no model": encode(replace(HONEST, weights={})),
    "a set and no model": encode(
        replace(HONEST, weights={"control/body.weight": torch.ones(2, 3)})
    ),
    "a private tensor": with_weights(**{BODY: MODEL[BODY], "head.weight": torch.ones(2)}),
    "a tensor of no network": with_weights(**{BODY: MODEL[BODY], "tail": torch.ones(2)}),
    "another shape": with_weights(**{BODY: torch.ones(3, 2)}),
    "a scalar": with_weights(**{BODY: torch.tensor(1.0)}),
    "half precision": with_weights(**{BODY: torch.ones(2, 3).half()}),
    "double precision": with_weights(**{BODY: torch.ones(2, 3).double()}),
    "integers": with_weights(**{BODY: torch.ones(2, 3).int()}),
    "truth values": with_weights(**{BODY: torch.ones(2, 3).bool()}),
    "NaN": with_weights(**{BODY: torch.full((2, 3), torch.nan)}),
    "an infinity": with_weights(**{BODY: torch.full((2, 3), -torch.inf)}),
    "moments that stay": with_weights(
        **{BODY: MODEL[BODY], "optimizer__/body.weight/exp_avg": torch.ones(2, 3)}
    ),
    "a set of no method": with_weights(**{BODY: MODEL[BODY], "upload__body.weight": OTHER}),
    "a set without end": with_weights(**{BODY: MODEL[BODY], "control__more": torch.ones(99_999)}),
    "a set with a private tensor": with_weights(
        **{BODY: MODEL[BODY], "control__head.weight": torch.ones(2)}
    ),
    "a set of another shape": with_weights(
        **{BODY: MODEL[BODY], "control__body.weight": torch.ones(1)}
    ),
    "a set of integers": with_weights(**{BODY: MODEL[BODY], "control__n": torch.ones(1).int()}),
}
SCORES: dict[str, bytes] = {
    "a score of another site's case": encode(
        replace(SCORED, scores=(replace(CASE, site="birch"),))
    ),
    "a score with a tensor": encode(replace(SCORED, weights=MODEL)),
    "a patient without end": encode(replace(SCORED, scores=(replace(CASE, patient="p" * 999),))),
    "a case that cannot be printed": encode(replace(SCORED, scores=(replace(CASE, case="\x07"),))),
    "a negative count": encode(replace(SCORED, cases=-1)),
}
CARDS: dict[str, bytes] = {
    "a card of another site": json.dumps(
        asdict(FailureCard("birch", 1, "train", "MemoryError", "m"))
    ).encode(),
    "a card without a site": b'{"round": 1}',
    "a card as text": b'"failed"',
    "no card": b"",
    "a card with a round as text": json.dumps(
        asdict(FailureCard("alder", 1, "train", "E", "m")) | {"round": "one"}
    ).encode(),
}


def test_an_honest_reply_is_believed():
    [reply] = engine(encode(HONEST)).ask({"alder": TRAIN})
    assert reply.examples == 8
    [scored] = engine(encode(SCORED)).ask({"alder": SCORE})
    assert scored.scores == (CASE,)


@pytest.mark.parametrize("name", BODIES)
def test_what_is_wrong_ends_as_a_card_of_its_sender(name: str):
    card = refusal(engine(BODIES[name]))
    assert (card.site, card.stage) == ("alder", "train")


@pytest.mark.parametrize("name", SCORES)
def test_a_score_that_is_wrong_ends_as_a_card(name: str):
    assert refusal(engine(SCORES[name]), SCORE).site == "alder"


@pytest.mark.parametrize("name", CARDS)
def test_a_card_that_is_wrong_ends_as_a_card_of_its_sender(name: str):
    assert refusal(engine(CARDS[name], state="failed")).site == "alder"


@pytest.mark.parametrize("state", ["working", "pending", "", "DONE", "unknown"])
def test_a_state_without_end_runs_into_the_deadline_or_the_silence(state: str):
    card = refusal(engine(b"", state=state))
    assert card.error in ("TimeoutError", "SiteSilent", "CorruptEnvelope")


def test_there_are_enough_of_them():
    assert len(BODIES) + len(SCORES) + len(CARDS) >= 60


@pytest.mark.parametrize("name", ["noise", "NaN", "examples as text", "more examples than before"])
def test_a_quorum_goes_on_without_who_sends_it(name: str):
    built = engine(BODIES[name], quorum=True)
    replies = built.ask(dict.fromkeys(("alder", "birch"), TRAIN), quorum=Quorum(least=1))
    assert [reply.site for reply in replies] == ["birch"]


def test_without_a_quorum_it_stops_the_round():
    built = engine(BODIES["NaN"], quorum=True)
    with pytest.raises(SiteFailed, match="alder"):
        built.ask(dict.fromkeys(("alder", "birch"), TRAIN), quorum=EVERYONE)


def headed(reply: Reply, number: int = 5, **changed: str) -> Reply:
    """A reply with where its site's ledger stands."""
    words = {"sum": "a" * 64, "message": message_digest(reply, digest(reply.weights))} | changed
    return replace(reply, ledger=LedgerHead(number, **{"signature": "QUJD", **words}))


@pytest.mark.parametrize(
    ("reply", "problem"),
    [
        (HONEST, "it does not say where its ledger stands"),
        (headed(HONEST, message="b" * 64), "its ledger tells of another message than it sent"),
        (replace(headed(HONEST), steps=3), "its ledger tells of another message than it sent"),
        (headed(HONEST, signature=""), "the line of its ledger is not signed"),
        (headed(HONEST, signature="<script>"), "is no digest and signature"),
        (headed(HONEST, sum="no digest"), "is no digest and signature"),
        (headed(HONEST, number=4), "its ledger stood at line 4, and now at line 4"),
        (headed(HONEST, number=10**12), "its ledger stood at line 4, and now at line 10000000000"),
    ],
)
def test_a_ledger_that_tells_of_another_message_goes_back_or_is_not_signed_is_refused(
    reply: Reply, problem: str
):
    guard = ReplyGuard(3, {"alder": POLICY}, signed=True)
    assert guard(TRAIN, headed(HONEST, number=4), False) == ""
    assert problem in guard(TRAIN, reply, False)
    assert guard(TRAIN, headed(HONEST), False) == ""


def test_without_keys_a_reply_may_lack_a_ledger_and_may_not_lie_of_it():
    guard = ReplyGuard(3, {"alder": POLICY})
    assert guard(TRAIN, HONEST, False) == ""
    assert guard(TRAIN, headed(HONEST, signature=""), False) == ""
    assert "another message" in guard(TRAIN, headed(HONEST, number=6, message="b" * 64), False)
