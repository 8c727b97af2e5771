"""Theorems about federated learning, on real tiny sites: nothing here can be tuned.

"Bitwise" means equal digests. Every test also shows that the weights are finite and moved.
"""

from collections.abc import Callable
from dataclasses import replace
from itertools import combinations
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from grandrounds.algorithms import METHODS
from grandrounds.algorithms.method import Method, merge_updates
from grandrounds.algorithms.methods.pflsynth import PFLSynth
from grandrounds.algorithms.sharing import Sharing
from grandrounds.algorithms.topology import RoundResult
from grandrounds.core.events import Event, RoundFinished, SiteTrained, SiteValidated
from grandrounds.core.messages import Train
from grandrounds.core.state import State, load_state, save_state
from grandrounds.core.weights import digest, read
from grandrounds.models.generator import Generator
from grandrounds.runs.build import Federation
from grandrounds.runs.loop import run_study as run
from grandrounds.study.study import Choice, Study
from grandrounds.tasks.synthesis.networks import GROUPS, Translator
from grandrounds.tasks.synthesis.task import SynthesisTask
from tests.helpers.federation import (
    assert_trained,
    built,
    differing,
    digests,
    model_of,
    played,
    private_weights,
    rows,
    tiny,
    with_sites,
)
from tests.helpers.grids import with_representatives

pytestmark = pytest.mark.slow

ROUNDS = 2


def models(federation: Federation, outcome: RoundResult) -> list[str]:
    """The digest of every site's whole model, after asserting that it trained."""
    found: list[str] = []
    for site in federation.sites.sites:
        model = model_of(site, outcome.state)
        assert_trained(site.first_weights(), model)
        found.append(digest(model))
    return found


class EveryGroup(Method):
    """Every group named one by one, norm across them."""

    def sharing(self) -> Sharing:
        return Sharing((*GROUPS, "norm"))


class Opened(PFLSynth):
    """pFLSynth with every group shared."""

    def sharing(self) -> Sharing:
        return Sharing((*super().sharing().shared, *GROUPS))


def with_method(study: Study, method: type[Method], patch: pytest.MonkeyPatch) -> Study:
    """The study with a method that no preset makes."""
    patch.setitem(METHODS, "by-hand", method)
    return replace(study, method=Choice("by-hand"))


def test_row_6_fedbn_without_batch_norm_is_fedavg(tmp_path: Path):
    arms = {
        kind: built(tiny(f"method.kind={kind}", "task.norm=instance", sites=2), tmp_path / kind)
        for kind in ("fedbn", "fedavg")
    }
    fedbn, fedavg = (models(arm, played(arm, ROUNDS)[-1]) for arm in arms.values())
    assert fedbn == fedavg


def test_row_7_nothing_shared_is_every_site_training_alone(tmp_path: Path):
    """The same sites, first in a round together, then each without any other."""
    study = tiny("method.kind=local", sites=2)
    together = built(study, tmp_path / "together")
    outcome = played(together, ROUNDS)[-1]
    assert outcome.state.weights == {}
    apart = built(study, tmp_path / "apart")
    for site in apart.sites.sites:
        for round in range(1, ROUNDS + 1):
            site.answer(Train(round=round, since=round - 1))
    alone = [digest(private_weights(site, ROUNDS)) for site in apart.sites.sites]
    assert models(together, outcome) == alone
    assert len(set(alone)) == len(alone)


def test_row_7_everything_shared_is_fedavg(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Every group named one by one, norm across them, is "all"."""
    study = tiny("method.kind=fedavg", "task.norm=batch", sites=2)
    named = built(with_method(study, EveryGroup, monkeypatch), tmp_path / "named")
    fedavg = built(study, tmp_path / "fedavg")
    first, second = played(named, ROUNDS)[-1], played(fedavg, ROUNDS)[-1]
    assert models(named, first) == models(fedavg, second)
    assert [r.digest for r in first.replies] == [r.digest for r in second.replies]


@pytest.mark.parametrize("method", ["fedavg", "fedbn", "pflsynth"])
def test_row_8_a_star_of_one_site_is_local_training(tmp_path: Path, method: str):
    """The mean of one is that one, to the bit, whatever is shared and whatever private."""
    options = ["task.generator=personalised", "task.norm=batch"]
    star = built(tiny(f"method.kind={method}", *options, sites=1), tmp_path / "star")
    local = built(tiny("method.kind=local", *options, sites=1), tmp_path / "local")
    assert models(star, played(star, ROUNDS)[-1]) == models(local, played(local, ROUNDS)[-1])


def test_row_8_a_star_of_one_site_is_the_centralised_comparison(tmp_path: Path):
    """Pooling one site's data changes nothing but the name that its randomness comes from."""
    study = tiny("method.kind=central", sites=1)
    central = built(study, tmp_path / "central")
    [pooled] = central.sites.sites
    named = with_sites(central, replace(pooled, name="alder", folder=tmp_path / "named"))
    local = built(replace(study, method=Choice("local")), tmp_path / "local")
    assert models(named, played(named, ROUNDS)[-1]) == models(local, played(local, ROUNDS)[-1])


def test_row_14_permuting_the_sites_leaves_the_stars_aggregate_unchanged_once_sorted(
    tmp_path: Path,
):
    """Who sits at the bench first makes no difference; the roster orders the mean."""
    study = tiny("method.kind=fedavg", sites=3)
    first, second = (built(study, tmp_path / name) for name in ("first", "second"))
    one, two, three = second.sites.sites
    permuted = with_sites(second, three, one, two)
    [once], [other] = played(first, 1), played(permuted, 1)
    ordered = sorted(other.replies, key=lambda reply: first.sites.names.index(reply.site))
    assert [reply.site for reply in other.replies] == ["cedar", "alder", "birch"]
    assert [digest(reply.weights) for reply in ordered] == [
        digest(reply.weights) for reply in once.replies
    ]
    assert digest(merge_updates(first.method, first.start, ordered).weights) == digest(
        once.state.weights
    )
    for name, tensor in other.state.weights.items():
        torch.testing.assert_close(tensor, once.state.weights[name], rtol=1e-6, atol=1e-9)
    assert models(first, once)


def test_row_19_pflsynth_with_every_group_shared_and_no_codes_is_fedavg_of_the_same_network(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    study = tiny("task.codes=none", "task.generator=personalised", sites=2)
    shared = built(with_method(study, Opened, monkeypatch), tmp_path / "pflsynth")
    fedavg = built(replace(study, method=Choice("fedavg")), tmp_path / "fedavg")
    first, second = played(shared, ROUNDS)[-1], played(fedavg, ROUNDS)[-1]
    assert models(shared, first) == models(fedavg, second)
    assert [r.digest for r in first.replies] == [r.digest for r in second.replies]
    assert any(name.startswith("generator.personal.") for name in first.state.weights)


@pytest.mark.parametrize("method", ["fedavg", "pflsynth"])
def test_row_20_two_equal_sites_stay_equal_and_their_average_is_either(tmp_path: Path, method: str):
    federation = built(tiny(f"method.kind={method}", sites=1), tmp_path)
    [alder] = federation.sites.sites
    twins = with_sites(federation, alder, replace(alder, folder=tmp_path / "sites" / "twin"))
    outcomes = played(twins, ROUNDS)
    for outcome in outcomes:
        first, second = outcome.replies
        assert digest(first.weights) == digest(second.weights) == digest(outcome.state.weights)
        assert first.digest == second.digest
    assert len(set(models(twins, outcomes[-1]))) == 1


# Row 15: stopping and resuming.


class Stop:
    """A listener that stops the run when a wanted event comes, as a person would."""

    def __init__(self, wanted: Callable[[Event], bool]) -> None:
        self.wanted = wanted
        self.heard = 0

    def __call__(self, event: Event) -> None:
        if self.wanted(event):
            raise KeyboardInterrupt


def results(folder: Path) -> tuple[object, ...]:
    """All numbers of a finished run, time aside."""
    models = {
        str(path.relative_to(folder)): digest(read(path)[0])
        for path in sorted([*folder.glob("model/*"), *folder.glob("sites/*/private*")])
    }
    losses = [
        {name: value for name, value in row.items() if name != "seconds"}
        for row in rows(folder / "rounds.csv")
    ]
    return digests(folder), rows(folder / "scores.csv"), losses, models


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Study, tuple[object, ...]]:
    study, folder = tiny(sites=2), tmp_path_factory.mktemp("undisturbed") / "run"
    state = run(study, folder)
    assert len(digests(folder)) == len(set(digests(folder))) == study.rounds
    assert_trained(built(study, folder).start.weights, state.weights)
    return study, results(folder)


MOMENTS: dict[str, Callable[[Event], bool]] = {
    "before the first round": lambda e: isinstance(e, SiteTrained) and e.round == 1,
    "after the first site": lambda e: isinstance(e, SiteTrained) and e.site == "birch",
    "between training and validation": lambda e: isinstance(e, SiteValidated),
    "before round 1 is saved": lambda e: isinstance(e, RoundFinished),
    "in round 2": lambda e: isinstance(e, SiteTrained) and (e.round, e.site) == (2, "birch"),
    "before round 2 is saved": lambda e: isinstance(e, RoundFinished) and e.round == 2,
    "in the last round": lambda e: isinstance(e, SiteValidated) and e.round == 3,
    "before the last round is saved": lambda e: isinstance(e, RoundFinished) and e.round == 3,
    "while testing": lambda e: type(e).__name__ == "SiteTested",
    "at the very end": lambda e: type(e).__name__ == "RunFinished",
}


HARDEST = ("between training and validation", "before round 2 is saved", "while testing")


@pytest.mark.parametrize("moment", with_representatives(MOMENTS, HARDEST))
def test_row_15_stopped_and_resumed_is_never_stopped(
    tmp_path: Path, moment: str, undisturbed: tuple[Study, tuple[object, ...]]
):
    study, expected = undisturbed
    folder = tmp_path / "run"
    with pytest.raises(KeyboardInterrupt):
        run(study, folder, listeners=[Stop(MOMENTS[moment])])
    run(study, folder, resume=True)
    assert results(folder) == expected


def test_row_15_stopped_in_every_round_is_never_stopped(
    tmp_path: Path, undisturbed: tuple[Study, tuple[object, ...]]
):
    study, expected = undisturbed
    folder = tmp_path / "run"
    for round in (1, 2, 3):
        wanted = Stop(lambda e, r=round: isinstance(e, RoundFinished) and e.round == r)
        for _ in range(2):
            with pytest.raises(KeyboardInterrupt):
                run(study, folder, resume=folder.exists(), listeners=[wanted])
            assert len(digests(folder)) == round
        saved = load_state(folder, round - 1) if round > 1 else State({})
        assert saved.round == round - 1
        run_one_round(study, folder, round)
    run(study, folder, resume=True)
    assert results(folder) == expected


def run_one_round(study: Study, folder: Path, round: int) -> None:
    """Go on until this round is saved, which the next round's first event shows."""
    wanted = Stop(
        lambda e: (
            (isinstance(e, SiteTrained) and e.round == round + 1)
            or type(e).__name__ == "SiteTested"
        )
    )
    with pytest.raises(KeyboardInterrupt):
        run(study, folder, resume=True, listeners=[wanted])


def test_row_15_a_run_that_stops_early_is_resumed_as_if_never_stopped(tmp_path: Path):
    """Patience and the best round are part of the state."""
    study = tiny("rounds=6", "stop.patience=1", "training.learning_rate=0.05", sites=2)
    run(study, tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        run(study, tmp_path / "run", listeners=[Stop(MOMENTS["in round 2"])])
    run(study, tmp_path / "run", resume=True)
    assert results(tmp_path / "run") == results(tmp_path / "whole")
    assert len(digests(tmp_path / "run")) < study.rounds


# The guard against a dead mapper: codes stay apart after a federated round too.


def codes_of(study: Study) -> Tensor:
    task = study.task.bind(study.elements, study.roster)
    assert isinstance(task, SynthesisTask)
    return torch.stack(
        [task.coding.code(site, pair) for site, pairs in task.pairs.items() for pair in pairs]
    )


@torch.no_grad()
def assert_codes_separate(model: nn.Module, codes: Tensor) -> None:
    assert isinstance(model, Translator)
    generator = model.generator.eval()
    assert isinstance(generator, Generator)
    assert generator.mapper is not None
    styles = generator.mapper(codes)
    one_image = torch.rand(1, 1, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1
    images = generator(one_image.expand(len(codes), -1, -1, -1), codes)
    for a, b in combinations(range(len(codes)), 2):
        assert (styles[a] - styles[b]).abs().mean() > 0.01
        assert (images[a] - images[b]).abs().max() > 1e-4


def test_codes_stay_apart_after_a_federated_round_and_after_a_reload(tmp_path: Path):
    study = tiny()
    federation = built(study, tmp_path)
    [outcome] = played(federation, 1)
    save_state(tmp_path, outcome.state)
    again = built(study, tmp_path)
    reloaded = load_state(tmp_path, 1)
    for fresh, site in zip(again.sites.sites, federation.sites.sites, strict=True):
        assert_trained(site.first_weights(), model_of(site, outcome.state))
        for where, state in ((site, outcome.state), (fresh, reloaded)):
            where.trainer.load(model_of(where, state))
            assert_codes_separate(where.trainer.model, codes_of(study))


def test_the_guard_tells_a_mapper_that_died(tmp_path: Path):
    """Without this the guard could be a test that nothing fails."""
    study = tiny(sites=2)
    site = built(study, tmp_path).sites.sites[0]
    first = site.first_weights()
    dead = {n: t * 0.001 if n.startswith("generator.mapper.") else t for n, t in first.items()}
    assert differing(first, dead)
    site.trainer.load(dead)
    with pytest.raises(AssertionError):
        assert_codes_separate(site.trainer.model, codes_of(study))
