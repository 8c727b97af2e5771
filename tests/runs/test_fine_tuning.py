"""What a site tests that trains for itself: tuned models, Ditto's, and FedRep's two phases."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch

from grandrounds.algorithms.method import LocalRound, Method, Update
from grandrounds.algorithms.methods.fedrep import FedRep
from grandrounds.core.events import Event, RunFinished, SiteTested, SiteTuned
from grandrounds.core.journal import read_journal
from grandrounds.core.messages import Evaluate, Reply, Train, Tune
from grandrounds.core.weights import Weights, digest, read, select
from grandrounds.runs.loop import run_study as run
from grandrounds.site.model_state import SiteStore, model_tensors, personal_tensors
from grandrounds.site.site import Site
from tests.helpers.federation import (
    assert_trained,
    built,
    differing,
    digests,
    fail_when,
    played,
    rows,
    stopped,
    tiny,
)

pytestmark = pytest.mark.slow

TUNED = ("training.fine_tune=2", "rounds=2", "stop.test=last")


def scores(folder: Path) -> list[str]:
    return [row["value"] for row in rows(folder / "scores.csv")]


def test_the_scores_of_a_fine_tuned_study_are_of_the_tuned_models(tmp_path: Path):
    state = run(tiny(*TUNED, sites=2), tmp_path / "run")
    told = [event for _, event in read_journal(tmp_path / "run" / "journal.jsonl")]
    tuned = [event for event in told if isinstance(event, SiteTuned)]
    assert [(event.site, event.round, event.steps) for event in tuned] == [
        ("alder", 2, 4),
        ("birch", 2, 4),
    ]
    again = built(tiny(*TUNED, sites=2), tmp_path / "run")
    found: dict[bool, list[str]] = {}
    for word in (True, False):
        asked = Evaluate(
            round=2, since=2, split="test", cases=True, tuned=word, weights=state.weights
        )
        replies = [site.answer(asked) for site in again.sites.sites]
        found[word] = [repr(v) for r in replies for s in r.scores for v in s.values.values()]
    assert scores(tmp_path / "run") == found[True]
    assert scores(tmp_path / "run") != found[False]


def test_fine_tuning_changes_no_round_and_no_shared_model(tmp_path: Path):
    for name, epochs in {"tuned": 1, "plain": 0}.items():
        run(tiny("rounds=2", f"training.fine_tune={epochs}", sites=2), tmp_path / name)
    assert digests(tmp_path / "tuned") == digests(tmp_path / "plain")
    for file in ("model/shared.safetensors", "sites/alder/private.safetensors"):
        tuned, plain = (read(tmp_path / name / file)[0] for name in ("tuned", "plain"))
        assert digest(tuned) == digest(plain)
    assert scores(tmp_path / "tuned") != scores(tmp_path / "plain")


def test_a_tuned_model_is_all_of_the_sites_own_and_moved(tmp_path: Path):
    federation = built(tiny(sites=2), tmp_path)
    state = played(federation, 1)[-1].state
    alder = federation.sites.sites[0]
    before = alder.trainer.weights(lambda _: False) | state.weights
    reply = alder.answer(Tune(round=1, since=1, epochs=1, weights=state.weights))
    tuned = SiteStore(alder.folder).load_tuned()
    assert (reply.digest, reply.steps, reply.weights) == (digest(tuned), 2, {})
    assert set(tuned) == {n for n in alder.first_weights() if alder.task.uses("alder")(n)}
    assert_trained(before, select(tuned, before.__contains__))


def tuned_at(site: str) -> Callable[[Event], bool]:
    return lambda event: isinstance(event, SiteTuned) and event.site == site


@pytest.mark.parametrize(
    "moment",
    [
        tuned_at("alder"),
        tuned_at("birch"),
        lambda event: isinstance(event, SiteTested),
        lambda event: isinstance(event, RunFinished),
    ],
    ids=["half tuned", "tuned", "tested", "finished"],
)
def test_a_run_that_is_stopped_while_tuning_goes_on_to_the_same_scores(
    tmp_path: Path, moment: Callable[[Event], bool]
):
    study = tiny(*TUNED, sites=2)
    run(study, tmp_path / "whole")
    stopped(study, tmp_path / "parts", moment)
    assert not (tmp_path / "parts" / "scores.csv").exists()
    run(study, tmp_path / "parts", resume=True)
    assert scores(tmp_path / "parts") == scores(tmp_path / "whole")


def test_a_site_that_cannot_be_tuned_is_missed_where_a_quorum_allows_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    fail_when(monkeypatch, lambda name, r: name == "birch" and isinstance(r, Tune))
    run(tiny(*TUNED, "topology.require=1", sites=2), tmp_path)
    assert {row["site"] for row in rows(tmp_path / "scores.csv")} == {"alder"}


# Ditto: the personal model is the one that is tested.


def on_the_bench(site: Site) -> Weights:
    return site.trainer.weights(site.task.uses(site.name))


def test_dittos_tested_model_is_the_personal_one(tmp_path: Path):
    federation = built(tiny("method.kind=ditto", sites=2), tmp_path)
    state = played(federation, 2)[-1].state
    for site in federation.sites.sites:
        site.answer(Evaluate(round=2, since=2, split="test", weights=state.weights))
        personal = model_tensors(personal_tensors(SiteStore(site.folder).private.load(2)[0]))
        assert digest(on_the_bench(site)) == digest(personal)
        assert differing(state.weights, personal)


def test_dittos_personal_models_never_travel(tmp_path: Path):
    [outcome] = played(built(tiny("method.kind=ditto", sites=2), tmp_path), 1)
    assert not [name for reply in outcome.replies for name in reply.weights if "/" in name]


# FedRep: first the head alone, then all but the head.


@dataclass(frozen=True)
class HeadAlone(FedRep):
    """The first half of FedRep."""

    def train(self, site: LocalRound) -> Update:
        return site.train(only="private", epochs=self.head_epochs)


def trained(folder: Path, method: Method) -> tuple[Weights, Weights, Weights]:
    """The first weights, and what a round made of what is shared and what stays."""
    federation = built(tiny("method.kind=fedrep", "task.adversarial=0", sites=1), folder)
    [site] = federation.sites.sites
    site = replace(site, method=method)
    reply: Reply = site.answer(Train(round=1, since=0, weights=federation.start.weights))
    return (
        dict(site.first_weights()),
        reply.weights,
        model_tensors(SiteStore(site.folder).private.load(1)[0]),
    )


def test_fedrep_trains_first_what_stays_alone_and_then_what_is_shared(tmp_path: Path):
    first, body, head = trained(tmp_path / "head", HeadAlone())
    assert head
    assert not differing(first, body)
    assert_trained(first, head)
    _, both_body, both_head = trained(tmp_path / "both", FedRep())
    assert digest(both_head) == digest(head)
    assert_trained(first, both_body)


def test_fedreps_second_phase_begins_where_the_first_one_ended(tmp_path: Path):
    """The shared part learns beside the head that was just trained, not beside the old one."""
    _, once, _ = trained(tmp_path / "once", FedRep())
    _, twice, _ = trained(tmp_path / "twice", FedRep(head_epochs=3))
    assert any(not torch.equal(once[name], twice[name]) for name in once)
