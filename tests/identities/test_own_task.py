"""A task of one's own has the theorems of the house's tasks, on files and on datasets in memory."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from grandrounds.core.errors import BadFolder, SiteFailed
from grandrounds.core.events import RoundFinished
from grandrounds.core.weights import digest
from grandrounds.runs.build import Federation, build_federation
from grandrounds.runs.costs import plan_run
from grandrounds.runs.derived import average_scores
from grandrounds.runs.evaluate import matrix
from grandrounds.runs.folder import TrainedRun
from grandrounds.runs.loop import run_study as run
from grandrounds.runs.site_data import open_sites
from grandrounds.study.site_file import SiteFile, SiteSource
from grandrounds.study.study import Study
from tests.helpers.federation import (
    NOBODY,
    assert_trained,
    digests,
    model_of,
    played,
    private_weights,
    rows,
)
from tests.helpers.grids import with_representatives
from tests.helpers.own_tasks import PATIENTS, Points, lines, nodules, points, write_volumes

TWO = (points("oak", seed=1), points("yew", 14, seed=2))


@pytest.fixture(scope="module")
def volumes(tmp_path_factory: pytest.TempPathFactory) -> tuple[SiteFile, ...]:
    return write_volumes(tmp_path_factory.mktemp("volumes"))


def opened(study: Study, sources: Sequence[SiteSource], folder: Path) -> Federation:
    data = open_sites(study, sources)
    return build_federation(plan_run(study), data, folder, study.machine(), NOBODY)


@pytest.mark.slow
def test_volumes_train_at_two_sites_in_two_processes_as_in_one(
    volumes: tuple[SiteFile, ...], tmp_path: Path
):
    study = nodules()
    for workers in (1, 2):
        run(study, tmp_path / str(workers), files=volumes, workers=workers)
    assert digests(tmp_path / "1") == digests(tmp_path / "2")
    assert len(digests(tmp_path / "1")) == study.rounds
    federation = opened(study, volumes, tmp_path / "again")
    for site in federation.sites.sites:
        state = played(federation, 1)[-1].state
        assert_trained(site.first_weights(), model_of(site, state))
    scored = rows(tmp_path / "1" / "scores.csv")
    assert scored == rows(tmp_path / "2" / "scores.csv")
    assert {row["metric"] for row in scored} == {"log_score", "accuracy"}


@pytest.mark.slow
def test_no_file_of_a_run_has_the_name_of_a_patient(volumes: tuple[SiteFile, ...], tmp_path: Path):
    run(nodules(), tmp_path / "run", files=volumes)
    written = [path for path in (tmp_path / "run").rglob("*") if path.is_file()]
    assert len(written) > 5
    assert not [path for path in written if b"MRN" in path.read_bytes()]
    assert "p00" in (tmp_path / "run" / "scores.csv").read_text()


@pytest.mark.slow
def test_a_run_that_was_stopped_goes_on_to_the_same_bits(
    volumes: tuple[SiteFile, ...], tmp_path: Path
):
    study = nodules(rounds=3)
    run(study, tmp_path / "whole", files=volumes)

    with pytest.raises(KeyboardInterrupt):
        run(study, tmp_path / "parts", files=volumes, listeners=[stop_after_two])
    run(study, tmp_path / "parts", files=volumes, resume=True)
    assert digests(tmp_path / "parts") == digests(tmp_path / "whole")
    scores = [(tmp_path / name / "scores.csv").read_text() for name in ("parts", "whole")]
    assert scores[0] == scores[1]


def stop_after_two(event: object) -> None:
    """Stop a run as Ctrl-C does, once its second round is finished."""
    if isinstance(event, RoundFinished) and event.round == 2:
        raise KeyboardInterrupt


def test_data_that_changed_are_noticed_when_a_run_goes_on(tmp_path: Path):
    study, folder = lines(rounds=3), tmp_path / "run"
    with pytest.raises(KeyboardInterrupt):
        run(study, folder, files=TWO, listeners=[stop_after_two])
    changed = (points("oak", seed=9), TWO[1])
    with pytest.raises(BadFolder, match="oak"):
        run(study, folder, files=changed, resume=True)
    run(study, folder, files=changed, resume=True, accept_changes=True)
    assert len(digests(folder)) == 3


@pytest.mark.slow
def test_datasets_in_memory_reach_worker_processes(tmp_path: Path):
    study = lines()
    for workers in (1, 2):
        run(study, tmp_path / str(workers), files=TWO, workers=workers)
    assert digests(tmp_path / "1") == digests(tmp_path / "2")


def test_no_patient_is_in_two_splits(tmp_path: Path):
    data = open_sites(lines(), TWO)
    for name, site in data.items():
        [cohort] = site.cohorts
        found = [set(cohort.patients(split)) for split in ("train", "validation", "test")]
        assert sum(map(len, found)) == len(set().union(*found)) > 3
        assert sum(1 for _ in cohort) == len(next(s for s in TWO if s.name == name).dataset)
        assert site.ready.patients["train"] * 2 == site.ready.sessions["train"]


def test_a_star_of_one_site_is_training_alone(tmp_path: Path):
    trained: list[str] = []
    for method in ("fedavg", "local"):
        study = lines(sites=("oak",), method={"kind": method})
        federation = opened(study, TWO[:1], tmp_path / method)
        [site], state = federation.sites.sites, played(federation, 2)[-1].state
        model = model_of(site, state)
        assert_trained(site.first_weights(), model)
        trained.append(digest(model))
    assert trained[0] == trained[1]


def test_a_swarm_is_the_star(tmp_path: Path):
    found = {}
    for topology in ("star", "swarm"):
        study = lines(topology={"kind": topology})
        run(study, tmp_path / topology, files=TWO)
        found[topology] = (tmp_path / topology / "scores.csv").read_text()
    assert found["swarm"] == found["star"]


STAYS: dict[str, set[str]] = {
    "fedrep": {"network.2.weight", "network.2.bias"},
    "fedper": {"network.2.weight", "network.2.bias"},
    "fedbn": {f"network.1.{n}" for n in ("weight", "bias", "running_mean", "running_var")},
    "lg_fedavg": {"network.0.weight", "network.0.bias"},
    "ditto": set[str](),
}


@pytest.mark.parametrize("method", with_representatives(STAYS, ("fedrep", "fedbn", "ditto")))
def test_what_a_personalised_method_keeps_stays(tmp_path: Path, method: str):
    study = lines(method={"kind": method})
    federation = opened(study, TWO, tmp_path)
    outcomes = played(federation, 2)
    leaving = {name for reply in outcomes[-1].replies for name in reply.weights if "/" not in name}
    for site in federation.sites.sites:
        trained = model_of(site, outcomes[-1].state)
        assert_trained(site.first_weights(), trained)
        kept = set(private_weights(site, 2))
        assert not leaving & {name for name in kept if "/" not in name}
        if method != "lg_fedavg":
            assert STAYS[method] <= kept
            assert not STAYS[method] & leaving


@pytest.mark.parametrize("topology", ["cyclic", "relay"])
def test_sites_may_follow_one_another(tmp_path: Path, topology: str):
    study = lines(topology={"kind": topology})
    run(study, tmp_path, files=TWO)
    assert len(set(digests(tmp_path))) == study.rounds


def test_models_are_scored_at_every_site_and_at_sites_that_did_not_train(tmp_path: Path):
    study = lines(sites=("oak", "yew", "elm"), holdout_sites=["elm"])
    sources = (*TWO, points("elm", seed=3))
    run(study, tmp_path, files=sources)
    unseen = rows(tmp_path / "unseen.csv")
    assert {row["site"] for row in unseen} == {"elm"}
    scores = matrix(TrainedRun(tmp_path), sources)
    assert set(scores) == {"oak", "yew"}
    assert {score.site for score in scores["oak"]} == {"oak", "yew", "elm"}


def test_predictions_of_several_sites_are_averaged_for_a_label_of_two_words(tmp_path: Path):
    sites = [{"name": name, "tasks": ["lung nodule"]} for name in PATIENTS]
    study = lines(site=sites, method={"kind": "local"})
    run(study, tmp_path, files=TWO)
    finished = TrainedRun(tmp_path)
    averaged = average_scores([finished], TWO, of_all_sites=True)
    alone = average_scores([finished], TWO, of_all_sites=False)
    assert [score.case for score in averaged] == [score.case for score in alone]
    assert [score.values for score in averaged] != [score.values for score in alone]


def test_pooled_data_are_one_site(tmp_path: Path):
    run(lines(method={"kind": "central"}), tmp_path, files=TWO)
    assert {row["site"] for row in rows(tmp_path / "scores.csv")} == set(PATIENTS)


class Failing(Points):
    """A dataset whose fourth item is lost once the site is open."""

    lost = False

    def __getitem__(self, index: int):
        if self.lost and index % 4 == 3:
            raise FileNotFoundError(f"/data/{self.patients[index]}.npz is gone")
        return super().__getitem__(index)


def test_an_item_that_is_lost_in_training_ends_the_run_and_tells_nothing_of_it(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    dataset = Failing(TWO[0].dataset.patients)
    sources = (replace(TWO[0], dataset=dataset), TWO[1])

    def lose(event: object) -> None:
        Failing.lost = True

    try:
        with pytest.raises(SiteFailed) as failed:
            run(lines(), tmp_path, files=sources, listeners=[lose])
    finally:
        Failing.lost = False
    assert failed.value.card.site == "oak"
    assert "of its dataset cannot be read; see the log of site 'oak'" in failed.value.card.message
    assert b"MRN" not in (tmp_path / "journal.jsonl").read_bytes()
    assert "MRN" in caplog.text
