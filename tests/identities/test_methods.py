"""What each method and topology must equal: rows 1 to 5, 8, 14 and 18, for every task."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from grandrounds.algorithms import METHODS
from grandrounds.algorithms.aggregation import ServerStep
from grandrounds.algorithms.topology import RoundResult
from grandrounds.core.state import State
from grandrounds.core.weights import OPTIMIZER, digest, select
from grandrounds.runs.build import Federation
from grandrounds.runs.loop import run_study as run
from grandrounds.site.model_state import SiteStore, personal_tensors
from grandrounds.site.peers import Mailbox
from grandrounds.site.site import Site
from grandrounds.study.checks import notes
from grandrounds.study.study import Choice, SiteSpec, Study
from tests.helpers.federation import (
    assert_trained,
    built,
    differing,
    model_of,
    played,
    private_weights,
    rows,
    with_sites,
)
from tests.helpers.grids import with_representatives
from tests.helpers.task_studies import KINDS, tiny_of

pytestmark = pytest.mark.slow

ROUNDS = 2
MEANS = ("synthesis", "classification")  # the Dice loss is no mean over examples
EXACT = ("training.precision=fp64", "training.optimizer=sgd", "training.learning_rate=0.1")
ALIKE = ("task.adversarial=0.0", "task.flip=0.0")


def for_every_task(*values: str) -> list[Any]:
    """Pair every task with every value; `make test` takes each task and each value once."""
    grid = [(kind, value) for value in values for kind in KINDS]
    turns = max(len(KINDS), len(values))
    kept = {(KINDS[n % len(KINDS)], values[n % len(values)]) for n in range(turns)}
    return with_representatives(grid, kept)


def shared(study: Study, folder: Path, rounds: int = ROUNDS) -> dict[str, Tensor]:
    """The shared weights after some rounds, after asserting that all parts moved."""
    federation = built(study, folder)
    state = played(federation, rounds)[-1].state
    assert_trained(federation.start.weights, state.weights)
    return state.weights


def assert_close(one: dict[str, Tensor], other: dict[str, Tensor], tolerance: float) -> None:
    assert one.keys() == other.keys()
    for name, tensor in one.items():
        torch.testing.assert_close(tensor, other[name], rtol=tolerance, atol=tolerance, msg=name)


def fingerprints(federation: Federation, outcomes: list[RoundResult]) -> list[list[str]]:
    """Every round's digests: the shared model, then each site's private state."""
    first = federation.sites.sites[0].first_weights()
    for site in federation.sites.sites:
        assert_trained(first, private_weights(site, len(outcomes)) | model(site, outcomes[-1]))
    return [[o.state.fingerprint, *(reply.digest for reply in o.replies)] for o in outcomes]


def model(site: Site, outcome: RoundResult) -> dict[str, Tensor]:
    """The shared model, from the site where the sites hold it."""
    kept, round = SiteStore(site.folder), outcome.state.round
    return kept.merged(round).weights if kept.has_merged(round) else outcome.state.weights


@pytest.mark.parametrize("kind", MEANS)
def test_row_1_one_full_batch_step_at_each_site_is_centralised_gradient_descent(
    tmp_path: Path, kind: str
):
    """Site sizes differ, so the shares n_k / n are at work; float64, 1e-10."""
    options = [*EXACT, "training.batch_size=1000", "training.schedule=constant"]
    options += ALIKE if kind == "synthesis" else ["task.flip=0.0"]
    study = tiny_of(kind, *options, "method.kind=fedavg", sites=3)
    study = replace(study, site=tuple(_unequal(study)))
    central = built(replace(study, method=Choice("central")), tmp_path / "central")
    federated = shared(study, tmp_path / "federated", rounds=3)
    outcome = played(central, 3)[-1]
    assert [reply.steps for reply in outcome.replies] == [1]
    [pooled] = central.sites.sites
    everything = model_of(pooled, outcome.state)
    assert_close(select(everything, federated.__contains__), federated, 1e-10)


def _unequal(study: Study) -> Iterator[SiteSpec]:
    for number, site in enumerate(study.site):
        yield replace(site, slices=3 + 2 * number, tasks=study.site[0].tasks[:1])


@pytest.mark.parametrize(
    ("kind", "method"), for_every_task("fedavg", "fedopt", "scaffold", "fedper", "ditto")
)
def test_row_2_a_swarm_of_all_sites_is_the_star(tmp_path: Path, kind: str, method: str):
    """Whoever leads, and though no server ever holds the model."""
    found: list[list[list[str]]] = []
    for topology in ("star", "swarm"):
        study = tiny_of(kind, f"method.kind={method}", f"topology.kind={topology}", sites=3)
        federation = built(study, tmp_path / topology)
        outcomes = played(federation, ROUNDS)
        assert bool(outcomes[-1].state.weights) is (topology == "star")
        found.append(fingerprints(federation, outcomes))
    assert found[0] == found[1]


@pytest.mark.parametrize("leader", ["random", "weighted"])
def test_row_2_holds_for_every_way_to_choose_a_leader(tmp_path: Path, leader: str):
    star = built(tiny_of("synthesis", sites=3), tmp_path / "star")
    swarm = built(
        tiny_of("synthesis", "topology.kind=swarm", f"topology.leader={leader}", sites=3),
        tmp_path / "swarm",
    )
    assert fingerprints(star, played(star, 3)) == fingerprints(swarm, played(swarm, 3))


@pytest.mark.parametrize("kind", KINDS)
def test_row_3_fedprox_without_a_pull_is_fedavg(tmp_path: Path, kind: str):
    found = [
        shared(tiny_of(kind, f"method.kind={method}", *mu, sites=2), tmp_path / method)
        for method, mu in {"fedavg": (), "fedprox": ("method.mu=0.0",)}.items()
    ]
    assert digest(found[0]) == digest(found[1])


def test_a_pull_keeps_fedprox_nearer_to_the_start(tmp_path: Path):
    """The counterpart of row 3: the pull is there."""
    strengths = {"free": 0.0, "held": 500.0}
    moved: dict[str, float] = {}
    for name, mu in strengths.items():
        study = tiny_of("synthesis", "method.kind=fedprox", f"method.mu={mu}", sites=2)
        study = replace(
            study, training=replace(study.training, optimizer="sgd", learning_rate=1e-3)
        )
        federation = built(study, tmp_path / name)
        after = played(federation, 1)[-1].state.weights
        start = federation.start.weights
        moved[name] = float(sum((after[n] - start[n]).square().sum() for n in after))
    assert 0 < moved["held"] < 0.8 * moved["free"]


@pytest.mark.parametrize("kind", KINDS)
def test_row_4_a_server_that_takes_the_whole_step_without_momentum_is_fedavg(
    tmp_path: Path, kind: str
):
    stepped = tiny_of(
        kind,
        *("method.kind=fedopt", "method.server=momentum", "method.rate=1.0", "method.beta1=0.0"),
        sites=2,
    )
    plain = tiny_of(kind, "method.kind=fedavg", sites=2)
    one, other = (shared(s, tmp_path / s.method.kind) for s in (stepped, plain))
    assert_close(one, other, 1e-6)


@pytest.mark.parametrize(("kind", "optimizer"), for_every_task("sgd", "adam"))
def test_row_5_scaffold_with_one_site_is_plain_training(tmp_path: Path, kind: str, optimizer: str):
    rate = "training.learning_rate=0.01" if optimizer == "sgd" else "training.learning_rate=1e-3"
    options = (f"training.optimizer={optimizer}", rate, "training.precision=fp32")
    plain, corrected = (
        shared(tiny_of(kind, f"method.kind={m}", *options, sites=1), tmp_path / m, rounds=3)
        for m in ("fedavg", "scaffold")
    )
    assert_close(plain, corrected, 1e-6)


def test_row_5_scaffold_without_drift_yet_is_fedavg_and_later_is_not(tmp_path: Path):
    """In round 1 all control variates are zero; from round 2 on they correct."""
    options = ("training.optimizer=sgd", "training.learning_rate=0.01")
    played_by: dict[str, list[RoundResult]] = {}
    for method in ("fedavg", "scaffold"):
        study = tiny_of("synthesis", f"method.kind={method}", *options, sites=3)
        played_by[method] = played(built(study, tmp_path / method), 2)
    first, second = zip(*played_by.values(), strict=True)
    assert_close(first[0].state.weights, first[1].state.weights, 1e-6)
    assert second[0].state.fingerprint != second[1].state.fingerprint


@pytest.mark.parametrize(("kind", "method"), for_every_task("fedavg", "fedper", "fedprox"))
def test_row_8_a_cycle_of_one_site_is_local_training(tmp_path: Path, kind: str, method: str):
    if method == "fedprox":
        star = tiny_of(kind, "method.kind=fedprox", sites=1)
    else:
        star = tiny_of(kind, "method.kind=local", sites=1)
    cycle = tiny_of(kind, f"method.kind={method}", "topology.kind=cyclic", sites=1)
    found: list[str] = []
    for name, study in {"star": star, "cycle": cycle}.items():
        federation = built(study, tmp_path / name)
        state = played(federation, 3)[-1].state
        [site] = federation.sites.sites
        assert_trained(site.first_weights(), model_of(site, state))
        found.append(digest(model_of(site, state)))
    assert found[0] == found[1]


@pytest.mark.parametrize("kind", MEANS)
def test_row_14_the_order_of_the_sites_changes_the_cyclic_result(tmp_path: Path, kind: str):
    study = tiny_of(kind, "method.kind=fedavg", "topology.kind=cyclic", sites=3)
    back = replace(study, site=study.site[::-1])
    assert digest(shared(study, tmp_path / "there")) != digest(shared(back, tmp_path / "back"))


def test_row_14_an_alternating_cycle_turns_round_in_every_other_round(tmp_path: Path):
    """Its first cycle is the fixed one's; its second is not."""
    options = ("method.kind=fedavg", "topology.kind=cyclic")
    found = [
        [o.state.fingerprint for o in played(built(study, tmp_path / order), 2)]
        for order in ("fixed", "alternate")
        for study in [tiny_of("synthesis", *options, f"topology.order={order}", sites=3)]
    ]
    assert found[0][0] == found[1][0]
    assert found[0][1] != found[1][1]


@pytest.mark.parametrize("kind", MEANS)
def test_row_18_ditto_without_a_pull_is_fedavg_beside_local_training(tmp_path: Path, kind: str):
    arms = {
        name: built(tiny_of(kind, f"method.kind={name}", *options, sites=2), tmp_path / name)
        for name, options in {
            "ditto": ("method.strength=0.0",),
            "fedavg": (),
            "local": (),
        }.items()
    }
    states = {name: played(arm, ROUNDS)[-1].state for name, arm in arms.items()}
    assert digest(states["ditto"].weights) == digest(states["fedavg"].weights)
    for mine, alone in zip(arms["ditto"].sites.sites, arms["local"].sites.sites, strict=True):
        personal = personal_tensors(SiteStore(mine.folder).private.load(ROUNDS)[0])
        own = select(personal, lambda name: not name.startswith(OPTIMIZER))
        assert_trained(mine.first_weights(), own)
        assert digest(own) == digest(private_weights(alone, ROUNDS))


@pytest.mark.parametrize("kind", KINDS)
def test_mrmtl_without_a_pull_is_local_training(tmp_path: Path, kind: str):
    """To the last digit: each site goes on from its own model, and so does its optimiser."""
    scores: dict[str, list[object]] = {}
    for word, own in {"mrmtl": ("method.strength=0.0",), "local": ()}.items():
        study = tiny_of(kind, f"method.kind={word}", *own, sites=2)
        run(study, tmp_path / word)
        scores[word] = [row["value"] for row in rows(tmp_path / word / "scores.csv")]
    assert scores["mrmtl"] == scores["local"]


@pytest.mark.parametrize("kind", MEANS)
def test_apfl_shares_fedavgs_model_and_with_all_of_its_own_is_local_training(
    tmp_path: Path, kind: str
):
    arms = {
        name: built(tiny_of(kind, f"method.kind={name}", *own, sites=2), tmp_path / name)
        for name, own in {"apfl": ("method.alpha=1.0",), "fedavg": (), "local": ()}.items()
    }
    states = {name: played(arm, ROUNDS)[-1].state for name, arm in arms.items()}
    assert digest(states["apfl"].weights) == digest(states["fedavg"].weights)
    for mine, alone in zip(arms["apfl"].sites.sites, arms["local"].sites.sites, strict=True):
        personal = personal_tensors(SiteStore(mine.folder).private.load(ROUNDS)[0])
        own = select(personal, lambda name: not name.startswith(OPTIMIZER))
        assert_trained(mine.first_weights(), own)
        assert digest(own) == digest(private_weights(alone, ROUNDS))


def test_apfls_mixture_lies_between_the_shared_model_and_the_sites_own(tmp_path: Path):
    """m = alpha v + (1 - alpha) w, of what was trained in the round."""
    study = tiny_of("synthesis", "method.kind=apfl", "method.alpha=0.25", sites=2)
    federation = built(study, tmp_path)
    [outcome] = played(federation, 1)
    for site, reply in zip(federation.sites.sites, outcome.replies, strict=True):
        kept = SiteStore(site.folder).private.load(1)[0]
        for name, shared in reply.weights.items():
            mixture = 0.25 * kept[f"own/{name}"] + 0.75 * shared
            torch.testing.assert_close(kept[f"personal/{name}"], mixture, rtol=1e-4, atol=1e-5)


def test_mrmtls_pull_brings_the_models_of_the_sites_together(tmp_path: Path):
    apart: list[float] = []
    for strength in (0.0, 1.0):
        study = tiny_of("synthesis", "method.kind=mrmtl", f"method.strength={strength}", sites=2)
        federation = built(study, tmp_path / str(strength))
        played(federation, ROUNDS)
        first, second = (
            personal_tensors(SiteStore(site.folder).private.load(ROUNDS)[0])
            for site in federation.sites.sites
        )
        names = [name for name in first if name.startswith("generator.") and name in second]
        apart.append(float(sum((first[n] - second[n]).square().sum() for n in names)))
    assert apart[1] < apart[0]


def test_dittos_pull_brings_the_personal_model_nearer_to_the_shared_one(tmp_path: Path):
    """The counterpart of row 18."""
    apart: list[float] = []
    for strength in (0.0, 1.0):
        study = tiny_of("synthesis", "method.kind=ditto", f"method.strength={strength}", sites=2)
        federation = built(study, tmp_path / str(strength))
        state = played(federation, ROUNDS)[-1].state
        personal = personal_tensors(
            SiteStore(federation.sites.sites[0].folder).private.load(ROUNDS)[0]
        )
        apart.append(float(sum((personal[n] - t).square().sum() for n, t in state.weights.items())))
    assert apart[1] < apart[0]


@pytest.mark.parametrize("kind", KINDS)
def test_row_6_fedbn_without_batch_norm_is_fedavg_and_says_so(tmp_path: Path, kind: str):
    studies = [
        tiny_of(kind, f"method.kind={m}", "task.norm=instance", sites=2)
        for m in ("fedavg", "fedbn")
    ]
    plain, kept = (shared(study, tmp_path / study.method.kind) for study in studies)
    assert digest(plain) == digest(kept)
    assert "keeps no layer at a site" in " ".join(notes(studies[1]))


@pytest.mark.parametrize("kind", KINDS)
def test_row_7_nothing_shared_is_every_site_training_alone(tmp_path: Path, kind: str):
    """Together in a round, and each in a federation of its own."""
    study = tiny_of(kind, "method.kind=local", sites=2)
    together = built(study, tmp_path / "together")
    played(together, ROUNDS)
    for number, site in enumerate(together.sites.sites):
        alone = built(replace(study, site=study.site[number : number + 1]), tmp_path / site.name)
        played(alone, ROUNDS)
        mine, own = (private_weights(s, ROUNDS) for s in (site, alone.sites.sites[0]))
        assert_trained(site.first_weights(), mine)
        # Networks of one site's tasks may be smaller: what both have must be equal.
        assert not differing(own, mine)


@pytest.mark.parametrize("kind", KINDS)
def test_row_20_twins_stay_equal_and_their_average_is_either(tmp_path: Path, kind: str):
    study = tiny_of(kind, "method.kind=fedavg", sites=1)
    federation = built(study, tmp_path)
    [alder] = federation.sites.sites
    twin = replace(alder, folder=tmp_path / "sites" / "twin", mailbox=Mailbox())
    twins = with_sites(federation, alder, twin)
    outcome = played(twins, ROUNDS)[-1]
    first, second = outcome.replies
    assert first.digest == second.digest
    assert digest(first.weights) == digest(second.weights) == outcome.state.fingerprint
    mine, other = (SiteStore(site.folder).private.load(ROUNDS)[0] for site in (alder, twin))
    assert digest(mine) == digest(other)


def test_a_server_step_differs_from_plain_averaging_unless_it_is_the_whole_step():
    """Row 4 would hold for a step that is never taken, too."""
    weights = {"w": torch.tensor([1.0, 2.0])}
    average = {"w": torch.tensor([2.0, 0.0])}
    state = State(weights)
    half = ServerStep("replace", rate=0.5)(state, average)
    assert half.weights["w"].tolist() == [1.5, 1.0]
    adam = ServerStep("adam", rate=0.1, beta1=0.0, beta2=0.0, tau=0.0)(state, average)
    torch.testing.assert_close(adam.weights["w"], torch.tensor([1.1, 1.9]))


def test_every_preset_moves_its_weights_and_keeps_them_finite(tmp_path: Path):
    """All of them, on the tiny study, with batch norm where a method is about it."""
    for kind in METHODS:
        study = tiny_of("synthesis", f"method.kind={kind}", "task.norm=batch", sites=2)
        federation = built(study, tmp_path / kind)
        state = played(federation, 1)[-1].state
        for site in federation.sites.sites:
            assert_trained(site.first_weights(), model_of(site, state))
