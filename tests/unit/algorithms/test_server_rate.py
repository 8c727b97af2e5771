"""A measured server rate, against numbers worked out by hand."""

import pytest
import torch
from torch import Tensor, tensor

from grandrounds.algorithms.aggregation import Averaging
from grandrounds.algorithms.method import merge_updates
from grandrounds.algorithms.methods.fedavg import FedAvg
from grandrounds.algorithms.server_rate import CAP, extended, measured_rates
from grandrounds.core.errors import BadStudy
from grandrounds.core.messages import Reply
from grandrounds.core.state import State
from grandrounds.core.weights import mean, name_starts
from tests.helpers.federation import tiny

GROUPS = {"a.w": "a", "a.b": "a", "b.w": "b"}
OLD = {"a.w": tensor([1.0, 2.0]), "a.b": tensor([0.5]), "b.w": tensor([[0.0, -1.0]])}


def unit(size: int, place: int) -> Tensor:
    return torch.eye(size)[place]


def rate(moves: list[Tensor], portions: list[float] | None = None) -> float:
    """The rate of one parameter, from where it was to where each site took it."""
    old = {"w": torch.full_like(moves[0], 3.0)}
    updates = [{"w": old["w"] + move} for move in moves]
    shares = portions or [1 / len(moves)] * len(moves)
    return measured_rates(old, updates, shares, {"w": "all"})["all"]


@pytest.mark.parametrize("sites", [1, 2, 3, 4, 6, 8])
def test_moves_as_long_as_each_other_at_right_angles_have_half_as_many_as_rate(sites: int):
    assert rate([unit(8, n) for n in range(sites)]) == max(1.0, sites / 2)


def test_more_than_eight_sites_at_right_angles_are_capped():
    assert rate([unit(20, n) for n in range(20)]) == CAP == 4.0


def test_moves_that_agree_or_partly_agree_keep_the_mean():
    assert rate([tensor([1.0, 1.0])] * 5) == 1.0
    assert rate([tensor([1.0, 0.0]), tensor([1.0, 1.0])]) == 1.0


def test_opposite_moves_of_no_mean_are_capped_and_no_move_at_all_has_rate_1():
    assert rate([tensor([1.0]), tensor([-1.0])]) == CAP
    assert rate([tensor([0.0]), tensor([0.0])]) == 1.0


def test_shares_weigh_the_moves():
    """p = 3/4, 1/4 at right angles: (3/4 + 1/4) / (2 (9/16 + 1/16)) = 0.8, so the mean."""
    assert rate([unit(2, 0), unit(2, 1)], [0.75, 0.25]) == 1.0
    long = 4 * unit(2, 1)  # (3/4 + 16/4) / (2 (9/16 + 16/16)) = 4.75 / 3.125
    assert rate([unit(2, 0), long], [0.75, 0.25]) == pytest.approx(1.52, abs=1e-6)


def updates_of(**moves: list[Tensor]) -> list[dict[str, Tensor]]:
    """Four sites' weights: `a` and `b` by group, each site's move of it."""
    return [
        {
            "a.w": OLD["a.w"] + moves["a"][n][:2],
            "a.b": OLD["a.b"] + moves["a"][n][2:3],
            "b.w": OLD["b.w"] + moves["b"][n][None, :2],
        }
        for n in range(4)
    ]


def test_each_group_has_a_rate_of_its_own():
    """Group a spans four right angles in four numbers that lie in two tensors; group b agrees."""
    apart = [unit(4, n) for n in (0, 1, 2)] + [tensor([0.0, 0.0, -1.0, 0.0])]
    updates = updates_of(a=apart, b=[tensor([1.0, 1.0])] * 4)
    shares = [5.0] * 4
    middle = mean(updates, shares)
    further = extended(OLD, middle, updates, shares, GROUPS)
    assert torch.equal(further["b.w"], middle["b.w"])
    # mean move (1/4, 1/4, 0): squared 1/8; own squared 1; rate 1 / (2/8) = 4
    assert torch.allclose(further["a.w"], OLD["a.w"] + 4 * tensor([0.25, 0.25]))
    assert torch.allclose(further["a.b"], OLD["a.b"])


def test_what_has_no_group_keeps_its_mean_to_the_bit():
    old = {"w": torch.zeros(4), "w.running_mean": torch.zeros(4)}
    updates = [{"w": unit(4, n), "w.running_mean": unit(4, n)} for n in range(4)]
    middle = mean(updates, [1.0] * 4)
    further = extended(old, middle, updates, [1.0] * 4, {"w": "all"})
    assert torch.equal(further["w.running_mean"], middle["w.running_mean"])
    assert torch.equal(further["w"], torch.full((4,), 0.5))


@pytest.mark.parametrize("sites", [1, 3])
def test_one_site_or_equal_updates_are_fedavg_to_the_bit(sites: int):
    torch.manual_seed(3)  # pyright: ignore[reportUnknownMemberType]
    state = State({"w": torch.randn(1000)}, 4)
    moved = state.weights["w"] + torch.randn(1000)
    replies = [Reply(site=f"s{n}", round=5, examples=3, weights={"w": moved}) for n in range(sites)]
    plain = merge_updates(FedAvg(), state, replies)
    measured = FedAvg(averaging=Averaging(groups={"w": "all"}))
    assert torch.equal(merge_updates(measured, state, replies).weights["w"], plain.weights["w"])


def test_the_numbers_do_not_depend_on_blocks_or_threads():
    """300,000 numbers are five blocks; the sum of squares is a plain one within rounding."""
    torch.manual_seed(4)  # pyright: ignore[reportUnknownMemberType]
    old, moves = torch.randn(300_000), [torch.randn(300_000) for _ in range(4)]
    updates = [{"w": old + move} for move in moves]
    found = measured_rates({"w": old}, updates, [0.25] * 4, {"w": "all"})["all"]
    exact = [(u["w"].double() - old.double()) for u in updates]
    expected = sum(float(m.square().sum()) for m in exact) / 4
    expected /= 2 * float((sum(exact[1:], exact[0]) / 4).square().sum())
    assert found == pytest.approx(expected, abs=1e-6)
    assert 1.9 < found < 2.1
    threads = torch.get_num_threads()
    torch.set_num_threads(1 if threads > 1 else 2)
    again = measured_rates({"w": old}, updates, [0.25] * 4, {"w": "all"})["all"]
    torch.set_num_threads(threads)
    assert found == again


def test_a_tensor_that_some_sites_lack_is_measured_over_those_that_use_it():
    """Birch and cedar alone use `own`, at right angles: two sites, so rate 1; all four use `w`."""
    names = ("alder", "birch", "cedar", "elder")
    users = {"birch", "cedar"}
    averaging = Averaging(
        uses=lambda site: name_starts("w", "own") if site in users else name_starts("w"),
        groups={"w": "all", "own": "all"},
    )
    state = State({"w": torch.zeros(4), "own": torch.zeros(2)}, 0)
    replies = [
        Reply(
            site=name,
            round=1,
            examples=1,
            weights={"w": unit(4, n)} | ({"own": unit(2, n - 1)} if name in users else {}),
        )
        for n, name in enumerate(names)
    ]
    merged = merge_updates(FedAvg(averaging=averaging), state, replies).weights
    assert torch.equal(merged["w"], torch.full((4,), 0.5))
    assert torch.equal(merged["own"], torch.full((2,), 0.5))


MEASURED = "aggregation.rate=measured"
FEDAVG = "method.kind=fedavg"


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ((FEDAVG, "aggregation.rate=2.0"), "aggregation.rate is 2; it must be 1.0"),
        ((FEDAVG, "aggregation.rate=fast"), "aggregation.rate"),
        ((FEDAVG, MEASURED, "aggregation.kind=median"), 'makes no sense with kind = "median"'),
        ((FEDAVG, MEASURED, "aggregation.kind=trimmed"), 'makes no sense with kind = "trimmed"'),
        (("method.kind=fedopt", MEASURED), "its server takes a step of its own"),
        (("method.kind=fedbadam", "task.norm=batch", MEASURED), "a step of its own"),
        (("method.kind=scaffold", MEASURED), "its server steps by method.rate"),
        (("method.kind=local", MEASURED), "aggregation would do nothing"),
        (("method.kind=central", MEASURED), "aggregation would do nothing"),
        (
            ("method.kind=fedmedgan", "method.broadcast=best", MEASURED),
            "aggregation would do nothing",
        ),
        ((FEDAVG, "topology.kind=cyclic", MEASURED), "aggregation would do nothing"),
        (
            (FEDAVG, "topology.kind=split", "topology.cut=encoder.2", MEASURED),
            "steps with every batch",
        ),
        (
            (
                *(FEDAVG, "topology.kind=split", "topology.cut=encoder.2"),
                *("topology.variant=splitfed1", MEASURED),
            ),
            "steps with every batch",
        ),
        (
            (FEDAVG, "topology.kind=relay", "topology.groups=4", MEASURED),
            "every group is one site",
        ),
        ((FEDAVG, MEASURED, "training.first_broadcast=false"), "where all sites started"),
    ],
)
def test_a_rate_that_makes_no_sense_is_refused(options: tuple[str, ...], sentence: str):
    with pytest.raises(BadStudy) as refused:
        tiny(*options)
    assert sentence in str(refused.value)


def test_a_rate_is_the_methods_unless_the_study_says_it():
    assert tiny(FEDAVG).server_rate == 1.0
    assert tiny(FEDAVG, MEASURED).server_rate == "measured"
    pflsynth = "method.kind=pflsynth"
    assert tiny(pflsynth).server_rate == tiny(pflsynth, "topology.kind=relay").server_rate
    assert tiny(pflsynth).server_rate == "measured"
    assert tiny(pflsynth, "aggregation.rate=1.0").server_rate == 1.0


def test_a_preferred_rate_is_1_where_nothing_is_averaged_or_the_released_code_is_followed():
    pflsynth = "method.kind=pflsynth"
    for other in ("topology.kind=cyclic", "parity=true", "aggregation.kind=median"):
        assert tiny(pflsynth, other).server_rate == 1.0
