import random
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from grandrounds.core.errors import DiskFailed
from grandrounds.core.messages import Describe, Evaluate, Finish, Reply, Train
from grandrounds.core.weights import OPTIMIZER, digest, read
from grandrounds.site.model_state import SiteStore
from grandrounds.site.site import Site
from tests.helpers.federation import (
    assert_trained,
    built,
    differing,
    part_of,
    played,
    private_weights,
    tiny,
    with_sites,
)


def order(weights: Mapping[str, Tensor], round: int = 1, keep: int = 0) -> Train:
    return Train(round=round, since=round - 1, keep=keep, weights=dict(weights))


def same(first: Reply, second: Reply) -> bool:
    """Equal but for the time that they took."""
    bare = [vars(replace(reply, weights={}, seconds=0.0)) for reply in (first, second)]
    return bare[0] == bare[1] and digest(first.weights) == digest(second.weights)


def pair(folder: Path, *overrides: str) -> tuple[Site, Site, dict[str, Tensor]]:
    """Two sites that share one bench, and the weights that they start from."""
    federation = built(tiny(*overrides, sites=2), folder)
    alder, birch = federation.sites.sites
    return alder, birch, federation.start.weights


@pytest.mark.slow
def test_the_same_request_twice_is_the_same_reply_to_the_bit(tmp_path: Path):
    alder, _, start = pair(tmp_path)
    first = alder.answer(order(start))
    assert same(first, alder.answer(order(start)))
    later = alder.answer(order(first.weights, 2))
    assert same(later, alder.answer(order(first.weights, 2)))
    assert not same(first, later)
    asked = Evaluate(round=2, since=2, split="test", cases=True, weights=later.weights)
    assert same(alder.answer(asked), alder.answer(asked))


@pytest.mark.slow
def test_an_answer_does_not_depend_on_what_the_bench_did_before(tmp_path: Path):
    alder, birch, start = pair(tmp_path)
    first = alder.answer(order(start))
    birch.answer(order(start))
    birch.answer(Evaluate(round=1, since=1, split="test", weights=start))
    assert same(alder.answer(order(start)), first)


def test_an_answer_leaves_global_randomness_untouched_and_does_not_use_it(tmp_path: Path):
    alder, _, start = pair(tmp_path)
    torch.manual_seed(1)
    np.random.seed(1)  # noqa: NPY002 - it is the global state that is watched
    random.seed(1)
    before = torch.get_rng_state(), list(np.random.get_state(legacy=True))[1], random.getstate()  # noqa: NPY002
    first = alder.answer(order(start))
    after = torch.get_rng_state(), list(np.random.get_state(legacy=True))[1], random.getstate()  # noqa: NPY002
    assert torch.equal(before[0], after[0])
    assert np.array_equal(before[1], after[1])
    assert before[2] == after[2]
    torch.manual_seed(2)
    assert same(alder.answer(order(start)), first)


def test_a_round_trains_all_of_a_sites_model_and_sends_what_is_shared_alone(tmp_path: Path):
    alder, _, start = pair(tmp_path)
    reply = alder.answer(order(start))
    assert reply.weights.keys() == start.keys()
    assert_trained(start, reply.weights)
    private = private_weights(alder, 1)
    assert not private.keys() & reply.weights.keys()
    assert_trained(alder.first_weights(), private)
    assert (reply.site, reply.round, reply.examples, reply.steps) == ("alder", 1, 8, 2)
    assert set(reply.metrics) == {"critics.T1w->T2w", "critics.T2w->PDw", "generator"}


def test_a_site_keeps_its_own_critics_and_no_others(tmp_path: Path):
    alder, birch, start = pair(tmp_path)
    for site, labels in ((alder, {"T1w->T2w", "T2w->PDw"}), (birch, {"T1w->T2w", "FLAIR->T2w"})):
        site.answer(order(start))
        critics = {n.split(".")[1] for n in private_weights(site, 1) if n.startswith("critics.")}
        assert critics == labels


@pytest.mark.slow
def test_private_weights_are_each_sites_own_whoever_trains_beside_it(tmp_path: Path):
    """A site that takes turns with others saves what it would have saved alone."""
    together = built(tiny(sites=2), tmp_path / "together")
    outcomes = played(together, 2)
    for number, site in enumerate(together.sites.sites):
        apart = built(tiny(sites=2), tmp_path / f"apart-{number}").sites.sites[number]
        apart.answer(order(together.start.weights))
        apart.answer(order(outcomes[0].state.weights, 2))
        assert digest(private_weights(site, 2)) == digest(private_weights(apart, 2))
    alder, birch = (private_weights(site, 2) for site in together.sites.sites)
    assert {part_of(name) for name in differing(alder, birch)} == {
        "generator.encoder",
        "generator.bottleneck_early",
        "generator.personal",
        "critics.T1w->T2w",
    }


@pytest.mark.slow
def test_personal_models_are_written_under_their_own_sites_name(tmp_path: Path):
    federation = built(tiny(sites=2), tmp_path)
    played(federation, 3)
    for site in federation.sites.sites:
        site.answer(Finish(round=3, best=2))
        for name, round in {"private": 2, "private-last": 3}.items():
            found, notes = read(tmp_path / "sites" / site.name / f"{name}.safetensors")
            assert notes.items() >= {"site": site.name, "round": str(round)}.items()
            assert digest(found) == digest(private_weights(site, round))
            assert not [tensor for tensor in found if tensor.startswith(OPTIMIZER)]


def test_batch_norm_statistics_differ_between_sites_after_a_round_of_fedbn(tmp_path: Path):
    federation = built(tiny("method.kind=fedbn", "task.norm=batch", sites=2), tmp_path)
    [outcome] = played(federation, 1)
    alder, birch = (private_weights(site, 1) for site in federation.sites.sites)
    for kind in ("running_mean", "running_var", "weight", "bias"):
        names = [n for n in alder if n.startswith("generator.") and n.endswith(kind)]
        assert names
        assert not [name for name in names if torch.equal(alder[name], birch[name])], kind
        assert not [name for name in names if name in outcome.state.weights]


def test_running_statistics_travel_with_fedavg(tmp_path: Path):
    federation = built(tiny("method.kind=fedavg", "task.norm=batch", sites=2), tmp_path)
    [outcome] = played(federation, 1)
    means = [n for n in outcome.state.weights if n.endswith("running_mean")]
    sent = [[reply.weights[name] for reply in outcome.replies] for name in means]
    assert means
    for name, (alder, birch) in zip(means, sent, strict=True):
        half = (alder.double() + birch.double()) / 2  # eight training slices each
        torch.testing.assert_close(outcome.state.weights[name].double(), half)


@pytest.mark.slow
@pytest.mark.parametrize(("buffers", "batches"), [("private", 4), ("reset", 2)])
def test_statistics_that_are_reset_forget_the_rounds_before(
    tmp_path: Path, buffers: str, batches: int
):
    study = tiny("method.kind=fedavg", "task.norm=batch", f"training.norm_buffers={buffers}")
    federation = built(replace(study, site=study.site[:1]), tmp_path)
    played(federation, 2)
    private = private_weights(federation.sites.sites[0], 2)
    counters = {
        int(tensor)
        for name, tensor in private.items()
        if name.startswith("generator.") and name.endswith("num_batches_tracked")
    }
    assert counters == {batches}


def steps(site: Site, round: int) -> set[float]:
    saved, _ = SiteStore(site.folder).private.load(round)
    return {float(t) for n, t in saved.items() if n.startswith(f"{OPTIMIZER}generator/")
            and n.endswith("/step")}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize(("reset", "expected"), [("false", {4.0}), ("true", {2.0})])
def test_adams_moments_live_on_unless_the_study_resets_them(
    tmp_path: Path, reset: str, expected: set[float]
):
    federation = built(tiny(f"training.reset_optimizer={reset}", sites=1), tmp_path)
    played(federation, 2)
    assert steps(federation.sites.sites[0], 1) == {2.0}
    assert steps(federation.sites.sites[0], 2) == expected


@pytest.mark.slow
def test_optimiser_state_is_read_back_by_another_process_to_the_bit(tmp_path: Path):
    federation = built(tiny(sites=2), tmp_path)
    first, second = played(federation, 2)
    again = built(tiny(sites=2), tmp_path)
    outcome = again.topology.round(first.state, again.sites, again.method)
    assert [r.digest for r in outcome.replies] == [r.digest for r in second.replies]
    assert digest(outcome.state.weights) == digest(second.state.weights)


@pytest.mark.slow
def test_optimiser_state_matters(tmp_path: Path):
    """The test before would prove nothing if moments made no difference."""
    kept, reset = (
        played(built(tiny(f"training.reset_optimizer={word}", sites=1), tmp_path / word), 2)[-1]
        for word in ("false", "true")
    )
    assert digest(kept.state.weights) != digest(reset.state.weights)


def test_a_digest_fingerprints_private_weights_and_optimiser_state(tmp_path: Path):
    alder, _, start = pair(tmp_path)
    reply = alder.answer(order(start))
    saved, _ = SiteStore(alder.folder).private.load(1)
    assert reply.digest == digest(saved)
    assert any(name.startswith(f"{OPTIMIZER}generator/decoder") for name in saved)


def test_a_site_describes_itself_and_the_rounds_that_it_holds(tmp_path: Path):
    alder, _, start = pair(tmp_path)
    assert alder.answer(Describe()).rounds == ()
    for round in (1, 2, 3):
        alder.answer(order(start, round, keep=1))
    reply = alder.answer(Describe())
    assert reply.rounds == (1, 2, 3)
    assert reply.ready == alder.ready
    assert reply.ready is not None
    assert reply.ready.patients == {"train": 2, "validation": 1, "test": 2}


def test_evaluation_scores_every_case_of_every_task_and_changes_nothing(tmp_path: Path):
    alder, _, start = pair(tmp_path)
    trained = alder.answer(order(start))
    files = {path: path.read_bytes() for path in tmp_path.rglob("*.safetensors")}
    reply = alder.answer(
        Evaluate(round=1, since=1, split="test", cases=True, weights=trained.weights)
    )
    assert reply.cases == len(reply.scores) == 2 * 2 * 4  # patients, tasks, slices
    assert {score.task for score in reply.scores} == {"T1w->T2w", "T2w->PDw"}
    assert {path: path.read_bytes() for path in tmp_path.rglob("*.safetensors")} == files
    means = [s.values["psnr"] for s in reply.scores]
    assert reply.metrics["psnr"] == pytest.approx(sum(means) / len(means))


def test_scores_leave_a_site_only_where_cases_are_asked_for(tmp_path: Path):
    alder, _, start = pair(tmp_path)
    alder.answer(order(start))
    reply = alder.answer(Evaluate(round=1, since=1, split="validation", weights=start))
    assert reply.scores == ()
    assert reply.weights == {}
    assert set(reply.metrics) == {"psnr", "ssim", "nrmse", "gabor"}
    assert not (tmp_path / "sites/alder/panels.npz").exists()


@pytest.mark.parametrize("shows", [True, False])
def test_pictures_stay_with_the_site_and_are_made_only_if_it_allows(tmp_path: Path, shows: bool):
    alder, _, start = pair(tmp_path)
    alder.answer(order(start))
    asked = Evaluate(round=1, since=1, split="test", cases=True, weights=start)
    replace(alder, shows_images=shows).answer(asked)
    assert (tmp_path / "sites/alder/panels.npz").exists() == shows


def test_a_site_whose_disk_fails_sends_nothing(tmp_path: Path):
    alder, _, start = pair(tmp_path)
    (tmp_path / "sites/alder").mkdir(parents=True)
    (tmp_path / "sites/alder/state").symlink_to("/proc/self")  # a folder that takes no files
    with pytest.raises(DiskFailed):
        alder.answer(order(start))


def test_a_site_alone_is_asked_alone(tmp_path: Path):
    federation = built(tiny(sites=2), tmp_path)
    alone = with_sites(federation, federation.sites.sites[1])
    [outcome] = played(alone, 1)
    assert [reply.site for reply in outcome.replies] == ["birch"]
    assert digest(outcome.state.weights) == digest(outcome.replies[0].weights)
