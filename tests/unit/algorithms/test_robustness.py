"""One site of seven sends harmful updates: the mean breaks, the robust aggregations hold."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import pytest
import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

from grandrounds.algorithms.aggregation import Aggregation, Averaging, Updates
from grandrounds.algorithms.method import Method
from grandrounds.algorithms.robustness import NormWatch, krum_chosen, update_norms
from grandrounds.algorithms.star import Star
from grandrounds.algorithms.topology import EVERYONE, Links, Quorum
from grandrounds.core.errors import BadStudy, RunFailed
from grandrounds.core.messages import Reply, Request, Train
from grandrounds.core.state import State
from grandrounds.core.weights import Weights
from tests.helpers.federation import tiny

SITES, FEATURES, CASES = tuple("abcdefg"), 6, 80
Attack = Literal["none", "scaled", "sign-flipped", "label-flipped"]
ROBUST = (
    Aggregation("median"),
    Aggregation("trimmed", trim=0.2),
    Aggregation("krum", faulty=1),
)


def cases(seed: int, count: int = CASES) -> tuple[Tensor, Tensor]:
    """Cases of two classes that a line separates, but for some noise."""
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(count, FEATURES, generator=generator)
    noise = torch.randn(count, generator=generator)
    return inputs, (inputs @ torch.linspace(-1, 1, FEATURES) + 0.3 * noise > 0).float()


@dataclass
class Hospitals:
    """Sites that train a logistic regression, the last of which attacks and claims many cases."""

    attack: Attack
    links: Links = field(default=Links.STAR, init=False)
    names: tuple[str, ...] = field(default=SITES, init=False)

    def ask(
        self,
        requests: Mapping[str, Request],
        *,
        deliver_to: Sequence[str] = (),
        quorum: Quorum = EVERYONE,
    ) -> list[Reply]:
        return [self.trained(name, request) for name, request in requests.items()]

    def trained(self, name: str, request: Request) -> Reply:
        assert isinstance(request, Train)
        inputs, labels = cases(SITES.index(name))
        hostile = name == SITES[-1] and self.attack != "none"
        if hostile and self.attack == "label-flipped":
            labels = 1 - labels
        start = request.weights["w"]
        weights = start.clone().requires_grad_()
        for _ in range(5):
            loss = binary_cross_entropy_with_logits(inputs @ weights, labels)
            (gradient,) = torch.autograd.grad(loss, weights)
            weights = (weights - gradient).detach().requires_grad_()
        after = weights.detach()
        if hostile and self.attack != "label-flipped":
            factor = 50.0 if self.attack == "scaled" else -1.0
            after = start + factor * (after - start) * (-1.0 if factor > 0 else 1.0)
        examples = CASES * (10 if hostile and self.attack != "scaled" else 1)
        return Reply(site=name, round=request.round, examples=examples, weights={"w": after})


def accuracy(aggregation: Aggregation, attack: Attack) -> tuple[float, list[tuple[str, ...]]]:
    """Train five rounds; return the accuracy on fresh cases, and who was left out each round."""
    method = Method(averaging=Averaging(aggregation))
    state, star, left = State({"w": torch.zeros(FEATURES)}), Star(), list[tuple[str, ...]]()
    for _ in range(5):
        result = star.round(state, Hospitals(attack), method)
        left.append(Updates(result.replies, state, method.averaging).left_out)
        state = result.state
    inputs, labels = cases(99, 500)
    right = ((inputs @ state.weights["w"] > 0).float() == labels).float()
    return float(right.mean()), left


@pytest.mark.parametrize("attack", ["scaled", "sign-flipped", "label-flipped"])
def test_one_harmful_site_breaks_the_mean_and_no_robust_aggregation(attack: Attack):
    """Stated margin: within 2 points of the accuracy without an attack."""
    clean, _ = accuracy(Aggregation(), "none")
    assert clean > 0.9
    assert accuracy(Aggregation(), attack)[0] < 0.5
    for aggregation in ROBUST:
        assert accuracy(aggregation, attack)[0] > clean - 0.02, aggregation.kind


def test_multi_krum_tells_whom_it_left_out():
    for attack in ("scaled", "sign-flipped", "label-flipped"):
        assert accuracy(Aggregation("krum"), attack)[1] == [("g",)] * 5


def test_multi_krum_averages_all_but_f_and_ties_go_by_the_roster():
    points = [0.0, 0.1, 0.2, 0.3, 9.0]
    assert krum_chosen([{"w": torch.tensor([x])} for x in points], 1) == [0, 1, 2, 3]
    assert krum_chosen([{"w": torch.zeros(2)} for _ in range(5)], 1) == [0, 1, 2, 3]
    average = Updates(
        [Reply(site=str(x), round=1, weights={"w": torch.tensor([x])}) for x in points],
        State({"w": torch.zeros(1)}),
        Averaging(Aggregation("krum")),
    ).average()
    assert torch.allclose(average["w"], torch.tensor([0.15]))


def test_multi_krum_compares_what_all_have_and_needs_2f_plus_3():
    updates: list[Weights] = [{"w": torch.tensor([x]), f"own {x}": torch.ones(1)} for x in range(5)]
    assert krum_chosen(updates, 1) == [0, 1, 2, 3]
    with pytest.raises(RunFailed, match=r"= 5 updates where f = 1 .* and 4 came"):
        krum_chosen(updates[:4], 1)


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (("aggregation.kind=krum",), "needs 2 f . 3 = 5 sites where f = 1 .* this study has 4"),
        (("aggregation.kind=krum", "aggregation.faulty=0"), "faulty is 0.* it must be 1 or more"),
        (("aggregation.faulty=1",), 'faulty would do nothing: with kind = "mean"'),
        (("aggregation.kind=krum", "topology.kind=swarm"), "needs 2 f|needs topology.kind"),
    ],
)
def test_what_multi_krum_cannot_serve_is_refused(words: tuple[str, ...], problem: str):
    with pytest.raises(BadStudy, match=problem):
        tiny("method.kind=fedavg", *words)


def test_an_update_much_longer_than_the_others_or_than_before_is_told():
    watch = NormWatch()
    for _ in range(3):
        assert watch.unusual({"a": 1.0, "b": 1.2, "c": 0.9, "d": 2.0}) == {}
    found = watch.unusual({"a": 1.0, "b": 1.1, "c": 0.9, "d": 50.0})
    assert list(found) == ["d"]
    assert "50 times as long as the other sites'" in found["d"]
    assert "and 25 times as long as its own of earlier rounds" in found["d"]
    assert list(watch.unusual({"a": 0.01, "b": 1.1, "c": 0.9, "d": 2.0})) == ["a"]


def test_few_sites_or_rounds_are_no_measure_and_nothing_moved_is_no_error():
    assert NormWatch().unusual({"a": 1.0, "b": 1e9}) == {}
    assert list(NormWatch().unusual({"a": 1.0, "b": 1.0, "c": 1.0, "d": 0.0})) == ["d"]


def test_a_norm_is_of_the_model_s_own_floating_tensors():
    before = {"w": torch.zeros(2), "count": torch.zeros(1, dtype=torch.int64)}
    after = {
        "w": torch.tensor([3.0, 4.0]),
        "count": torch.ones(1, dtype=torch.int64),
        "control/w": torch.ones(2),
    }
    reply = Reply(site="a", round=1, weights=after)
    assert update_norms(before, [reply, replace(reply, site="b", weights=before)]) == {
        "a": 5.0,
        "b": 0.0,
    }
