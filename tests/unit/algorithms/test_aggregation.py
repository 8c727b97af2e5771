"""From replies to the next state, against numbers worked out by hand from the papers."""

from math import sqrt

import pytest
from torch import Tensor, tensor

from grandrounds.algorithms.aggregation import Aggregation, Averaging, ServerStep
from grandrounds.algorithms.method import merge_updates
from grandrounds.algorithms.methods.fedavg import FedAvg
from grandrounds.algorithms.methods.scaffold import Scaffold
from grandrounds.core.errors import BadUpdate
from grandrounds.core.messages import Reply
from grandrounds.core.state import State
from grandrounds.core.weights import Weights

VALUES = {"alder": 0.0, "birch": 2.0, "cedar": 100.0, "elder": 4.0}
EXAMPLES = {"alder": 8, "birch": 4, "cedar": 2, "elder": 2}


def reply(site: str, **weights: Tensor) -> Reply:
    return Reply(site=site, round=1, examples=EXAMPLES[site], weights=weights)


def combined(aggregation: Aggregation, *names: str, **given: float) -> float:
    """One number of each site, as one number."""
    replies = [reply(name, w=tensor([VALUES[name]])) for name in names or VALUES]
    method = FedAvg(averaging=Averaging(aggregation, given))
    state = merge_updates(method, State({"w": tensor([0.0])}, 4), replies)
    assert state.round == 5
    return state.weights["w"].item()


def test_a_mean_weighs_sites_by_their_training_cases():
    assert combined(Aggregation()) == (8 * 0 + 4 * 2 + 2 * 100 + 2 * 4) / 16


def test_a_uniform_mean_counts_every_site_alike():
    assert combined(Aggregation(shares="uniform")) == (0 + 2 + 100 + 4) / 4


def test_a_mean_takes_the_shares_that_the_study_gives():
    given = Aggregation(shares="given")
    assert combined(given, alder=1, birch=1, cedar=0.5, elder=1.5) == (2 + 50 + 6) / 4


def test_a_mean_of_some_sites_weighs_only_these():
    assert combined(Aggregation(), "alder", "birch", "elder") == pytest.approx((8 + 8) / 14)


def test_a_median_ignores_how_far_out_a_site_is():
    """Yin et al. 2018: of an even number of sites, the mean of the two middle values."""
    assert combined(Aggregation("median")) == 3.0
    assert combined(Aggregation("median"), "alder", "birch", "cedar") == 2.0


@pytest.mark.parametrize(("trim", "expected"), [(0.25, 3.0), (0.49, 3.0), (0.2, 26.5)])
def test_a_trimmed_mean_drops_a_share_at_both_ends(trim: float, expected: float):
    """A quarter, or 0.49, of four sites is one; a fifth is none."""
    assert combined(Aggregation("trimmed", trim=trim)) == expected


def test_the_middle_is_taken_coordinate_by_coordinate():
    updates = [[0.0, 9.0], [1.0, 5.0], [2.0, -7.0]]
    replies = [reply(s, w=tensor(u)) for s, u in zip(VALUES, updates, strict=False)]
    for kind in (Aggregation("median"), Aggregation("trimmed", trim=0.34)):
        method = FedAvg(averaging=Averaging(kind))
        assert merge_updates(method, State({}), replies).weights["w"].tolist() == [1.0, 5.0]


@pytest.mark.parametrize("kind", ["mean", "median", "trimmed"])
def test_updates_of_other_names_or_shapes_are_refused(kind: str):
    averaging = Averaging(Aggregation(kind))  # pyright: ignore[reportArgumentType]
    for other in ({"v": tensor([1.0])}, {"w": tensor([1.0, 2.0])}):
        replies = [reply("alder", w=tensor([1.0])), reply("birch", **other)]
        with pytest.raises(BadUpdate, match="updates differ"):
            merge_updates(FedAvg(averaging=averaging), State({}), replies)


# The server's step. d is the sites' mean move; two rounds from w = 1 with d = 0.5, then 0.25.


def stepped(step: ServerStep) -> list[float]:
    state = State({"w": tensor([1.0]).double()})
    found: list[float] = []
    for move in (0.5, 0.25):
        state = step(state, {"w": state.weights["w"] + move})
        found.append(state.weights["w"].item())
    return found


def test_a_step_of_rate_1_is_the_average_to_the_bit():
    average: Weights = {"w": tensor([1 / 3])}
    state = ServerStep()(State({"w": tensor([1e9])}), average)
    assert state.weights is average
    assert state.memory == {}


def test_a_smaller_rate_goes_part_of_the_way():
    assert stepped(ServerStep("replace", rate=0.5)) == [1.25, 1.375]


def test_momentum_adds_what_is_left_of_earlier_moves():
    """m = 0.9 m + d; w += rate m."""
    first = 1 + 0.1 * 0.5
    second = first + 0.1 * (0.9 * 0.5 + 0.25)
    assert stepped(ServerStep("momentum", rate=0.1)) == pytest.approx([first, second], rel=1e-12)


@pytest.mark.parametrize("kind", ["adam", "yogi", "adagrad"])
def test_adaptive_steps_follow_algorithm_2_of_reddi(kind: str):
    rate, beta1, beta2, tau, start = 0.1, 0.9, 0.99, 1e-3, 1e-6
    w, m, v, expected = 1.0, 0.0, start, list[float]()
    for d in (0.5, 0.25):
        m = beta1 * m + (1 - beta1) * d
        if kind == "adam":
            v = beta2 * v + (1 - beta2) * d**2
        elif kind == "yogi":
            v = v - (1 - beta2) * d**2 * (1 if v > d**2 else -1)
        else:
            v = v + d**2
        w += rate * m / (sqrt(v) + tau)
        expected.append(w)
    step = ServerStep(kind, rate, beta1, beta2, tau, start)  # pyright: ignore[reportArgumentType]
    assert stepped(step) == pytest.approx(expected, rel=1e-12)


def test_the_first_step_of_adam_by_hand():
    """m = 0.05, v = 0.0025, sqrt(v) = 0.05: the move is rate 0.05 / 0.051."""
    [first, _] = stepped(ServerStep("adam", rate=0.1))
    assert first == pytest.approx(1 + 0.1 * 0.05 / 0.051, rel=1e-12)


def test_yogi_lets_the_spread_shrink_no_faster_than_the_square():
    """Where v is far above d^2, Adam loses a share of v, Yogi a share of d^2."""
    memory: Weights = {"v/w": tensor([100.0]).double()}
    state = State({"w": tensor([0.0]).double()}, memory=memory)
    average: Weights = {"w": tensor([1.0]).double()}
    spreads = [ServerStep(k)(state, average).memory["v/w"].item() for k in ("adam", "yogi")]
    assert spreads == pytest.approx([99.01, 99.99])


def test_running_statistics_are_never_stepped():
    before: Weights = {"n.running_var": tensor([1.0]), "n.running_mean": tensor([1.0])}
    after: Weights = {"n.running_var": tensor([0.1]), "n.running_mean": tensor([3.0])}
    step = ServerStep("momentum", rate=10.0)
    state = step(State(before | {"n.weight": tensor([1.0])}), after | {"n.weight": tensor([2.0])})
    assert {name: state.weights[name].item() for name in after} == pytest.approx(
        {"n.running_var": 0.1, "n.running_mean": 3.0}
    )
    assert state.weights["n.weight"].item() == 11.0
    assert list(state.memory) == ["m/n.weight"]


def test_a_step_keeps_the_dtype_and_remembers_in_float64():
    state = ServerStep("adam")(State({"w": tensor([1.0])}), {"w": tensor([2.0])})
    assert state.weights["w"].dtype == tensor([1.0]).dtype
    assert {str(t.dtype) for t in state.memory.values()} == {"torch.float64"}


def test_control_variates_move_by_the_sites_mean_and_are_no_weights():
    """c += (1 / N) sum of c_i+ - c_i; at first c_i = 0. Karimireddy et al. 2020, algorithm 1."""
    state = State({"w": tensor([0.0])})
    server, own = 0.0, {"birch": 0.0, "cedar": 0.0}
    for learned in ({"birch": 3.0, "cedar": -1.0}, {"birch": 0.5, "cedar": 2.0}):
        replies = [
            reply(name, w=tensor([4.0]), **{"control/w": tensor([value])})
            for name, value in learned.items()
        ]
        uniform = Averaging(Aggregation(shares="uniform"))
        state = merge_updates(Scaffold(averaging=uniform), state, replies)
        server += sum(learned[name] - own[name] for name in own) / 2
        own = learned
        assert state.memory["control/w"].item() == server
    assert list(state.weights) == ["w"]
    assert state.weights["w"].item() == 4.0


def test_a_servers_rate_leaves_control_variates_alone():
    replies = [reply("alder", w=tensor([4.0]), **{"control/w": tensor([2.0])})]
    state = merge_updates(Scaffold(rate=0.5), State({"w": tensor([0.0])}), replies)
    assert (state.weights["w"].item(), state.memory["control/w"].item()) == (2.0, 2.0)
