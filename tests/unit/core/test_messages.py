import json
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import tensor

from grandrounds.core.events import SiteReady
from grandrounds.core.messages import (
    MESSAGE_KINDS,
    Adopt,
    AdvertiseKeys,
    Backward,
    CaseScore,
    Describe,
    Evaluate,
    Finish,
    Forward,
    Merge,
    Message,
    Reply,
    ShareKeys,
    Survey,
    Tail,
    Train,
    Tune,
    Unmask,
    decode,
    encode,
)
from grandrounds.core.site_statistics import QuantileBin, SiteStatistics
from grandrounds.core.weights import Weights, digest

COUNTS = {"train": 8, "validation": 2, "test": 4}
READY = SiteReady(
    "alder", ("T1w->T2w",), COUNTS, COUNTS, COUNTS, {"T1w->T2w": COUNTS}, True, ("ünusual\x1f",)
)
WEIGHTS: Weights = {
    "generator.decoder.weight": tensor([[1.0, -0.0], [float("nan"), float("inf")]]),
    "half": tensor([1.0, 1 / 3], dtype=torch.bfloat16),
    "count": tensor(3),
    "none": torch.zeros(0, 4),
}
SCORES = (
    CaseScore(site="alder", patient="p001", case="1/000", task="a->b", values={"psnr": 20.125}),
    CaseScore(site="alder", patient="p002", case="1/001", task="a->b", values={}),
)
TOLD = SiteStatistics(
    site="alder",
    floor=5,
    simulated=False,
    counts={"patients": 15, "T1w": 15, "FLAIR": None},
    unmet={"age": {"age": None}},
    quantiles={"value": {"age": (QuantileBin(0.05, 20.0, 30.0), QuantileBin(0.95, 70.0, 80.0))}},
    kinds={"sequence": {"T1w": ("mprage", "spin-echo"), "FLAIR": None}},
    histograms={"T1w": (0.25, 0.75), "FLAIR": None},
)
MESSAGES: list[Message] = [
    Describe(),
    Train(round=3, since=2, epochs=2, steps=5, keep=1),
    Train(round=3, since=1, weights=WEIGHTS),
    Merge(round=3, since=2, peers=("alder", "birch")),
    Adopt(round=3, leader="birch", keep=1),
    Tune(round=4, since=4, epochs=2, weights=WEIGHTS),
    Evaluate(round=2, since=2, split="test", cases=True, weights=WEIGHTS),
    Evaluate(round=2, since=1, split="validation", after="birch", tuned=True),
    Forward(round=2, since=1, keep=1, weights=WEIGHTS),
    Tail(round=2, step=3, weights=WEIGHTS),
    Backward(round=2, step=3, last=True, losses={"generator": 1 / 3}, weights=WEIGHTS),
    Finish(round=9, best=4),
    Survey(),
    AdvertiseKeys(round=3),
    ShareKeys(round=3, weights=WEIGHTS),
    Unmask(round=3, survivors=("alder", "birch"), weights=WEIGHTS),
    Reply(site="alder", round=0, rounds=(1, 2), ready=READY),
    Reply(site="alder", round=0, statistics=TOLD),
    Reply(
        site="alder",
        round=3,
        examples=8,
        cases=2,
        steps=2,
        digest="ab",
        shared="cd",
        merged=3,
        sent=40,
        received=80,
        seconds=0.1,
        metrics={"generator": 1 / 3},
        scores=SCORES,
        weights=WEIGHTS,
    ),
]
DTYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.uint8]


def bare(message: Message) -> dict[str, object]:
    return {name: value for name, value in vars(message).items() if name != "weights"}


def weights_of(message: Message) -> Weights:
    return getattr(message, "weights", {})


def test_every_kind_of_message_is_here():
    assert {type(message) for message in MESSAGES} == set(MESSAGE_KINDS.values())


@pytest.mark.parametrize("message", MESSAGES, ids=lambda m: type(m).__name__)
def test_a_message_comes_back_as_it_was(message: Message):
    found = decode(encode(message))
    assert type(found) is type(message)
    assert bare(found) == bare(message)
    assert digest(weights_of(found)) == digest(weights_of(message))


@pytest.mark.parametrize("message", MESSAGES, ids=lambda m: type(m).__name__)
def test_a_message_is_the_same_bytes_every_time(message: Message):
    assert encode(decode(encode(message))) == encode(message)


UPWARDS = "../startup"
SCORE = replace(SCORES[0], site=UPWARDS)


@pytest.mark.parametrize(
    "message",
    [
        Reply(site=UPWARDS, round=1),
        Reply(site="alder", round=1, scores=(SCORE,)),
        Reply(site="alder", round=0, ready=replace(READY, site=UPWARDS)),
        Merge(round=3, since=2, peers=("alder", UPWARDS)),
        Adopt(round=3, leader=UPWARDS),
        Evaluate(round=2, since=1, split="test", after=UPWARDS),
    ],
    ids=["site", "score", "ready", "peer", "leader", "after"],
)
def test_a_message_in_which_a_site_is_a_path_is_not_read(message: Message):
    with pytest.raises(ValueError, match=r"^site '\.\./startup': a name has letters"):
        decode(encode(message))


def test_encoding_leaves_the_message_as_it_was():
    message = Train(round=1, since=0, weights=WEIGHTS)
    encode(message)
    assert list(message.weights) == list(WEIGHTS)


def test_all_but_the_weights_is_readable_json():
    data = encode(Tune(round=2, since=1, epochs=3, weights=WEIGHTS))
    length = int.from_bytes(data[:8], "little")
    header = json.loads(json.loads(data[8 : 8 + length])["__metadata__"]["message"])
    assert header == {
        "kind": "Tune",
        "fields": {"round": 2, "since": 1, "epochs": 3},
    }


def test_a_receipt_says_what_was_sent_to_every_peer_and_holds_no_tensor():
    reply = Reply(site="alder", round=1, digest="ab", sent=40, weights=WEIGHTS)
    receipt = reply.receipt(num_peers=3)
    assert receipt == replace(reply, weights={}, sent=120)
    assert list(reply.weights) == list(WEIGHTS)


NAMES = st.text("abcxyz._->é", min_size=1, max_size=8)


@st.composite
def any_weights(draw: st.DrawFn) -> Weights:
    """Tensors of any dtype, shape and bits, NaNs with payloads among them."""
    weights: Weights = {}
    for name in draw(st.lists(NAMES, unique=True, max_size=4)):
        dtype, shape = draw(st.sampled_from(DTYPES)), draw(st.lists(st.integers(0, 3), max_size=3))
        size = torch.Size(shape).numel() * dtype.itemsize
        raw = draw(st.binary(min_size=size, max_size=size))
        weights[name] = tensor(list(raw), dtype=torch.uint8).view(dtype).reshape(shape)
    return weights


@pytest.mark.slow
@settings(max_examples=100, deadline=None, derandomize=True, database=None)
@given(any_weights())
def test_weights_of_any_dtype_shape_and_bits_come_back(weights: Weights):
    found = weights_of(decode(encode(Reply(site="alder", round=1, weights=weights))))
    assert digest(found) == digest(weights)
