"""What a study may say of privacy and exchange, and what is refused with a sentence."""

import pytest

from grandrounds.core.errors import BadStudy
from tests.helpers.federation import tiny

CLIENT = ("method.kind=fedavg", "aggregation.shares=uniform", "privacy.kind=client",
          "privacy.clip=1.0", "privacy.noise=1.0")  # fmt: skip
REFUSED: dict[tuple[str, ...], str] = {
    ("privacy.clip=1.0",): 'privacy.clip would do nothing: privacy.kind is "none"',
    (
        "privacy.on_dropout=repeat",
    ): "privacy.on_dropout would do nothing: it needs privacy.secure_sum",
    ("privacy.kind=client", "privacy.noise=1.0"): "privacy.clip is missing",
    (*CLIENT, "privacy.clip=0.0"): "privacy.clip is 0; it must be above 0",
    (*CLIENT, "privacy.noise=-1.0"): "privacy.noise is -1; it must be 0 or more",
    (*CLIENT, "privacy.delta=1.0"): "privacy.delta is 1; it must be above 0 and below 1",
    (*CLIENT, "privacy.epsilon=-1.0"): "privacy.epsilon is -1; it must be above 0",
    ("exchange.fraction=0.1",): 'exchange.fraction would do nothing: exchange.kind is "full"',
    ("exchange.kind=topk",): "exchange.fraction is missing",
    ("exchange.kind=topk", "exchange.fraction=0.0"): "exchange.fraction is 0; it must be above 0",
    (
        "exchange.kind=topk",
        "exchange.fraction=0.5",
        "exchange.deltas=false",
    ): "exchange.deltas = false",
    ("exchange.kind=gzip",): "exchange.kind = 'gzip' is wrong",
}


@pytest.mark.parametrize("options", REFUSED)
def test_what_makes_no_sense_is_refused(options: tuple[str, ...]):
    with pytest.raises(BadStudy) as refusal:
        tiny(*options)
    assert REFUSED[options] in str(refusal.value)


def test_what_is_right_is_taken():
    assert tiny(*CLIENT, "privacy.delta=1e-5", "privacy.epsilon=8.0").privacy.is_noisy
    assert tiny("exchange.kind=full").exchange is not None
