"""Sites that do not train: what reaches them, and how the model does there."""

import csv
from collections.abc import Iterable
from pathlib import Path

import pytest
import torch

from grandrounds.core.errors import BadStudy
from grandrounds.core.events import RunStarted
from grandrounds.core.journal import read_journal
from grandrounds.runs.loop import run_study as run
from grandrounds.study.checks import notes
from grandrounds.study.study import Study
from grandrounds.tasks.synthesis.examples import ContrastPair, SiteTaskCode
from tests.helpers.federation import TINY, built, tiny
from tests.helpers.task_studies import tiny_of

BIRCH = "holdout_sites=['birch']"


def held(*options: str, sites: int = 3) -> Study:
    return tiny(BIRCH, "rounds=1", *options, sites=sites)


def column(path: Path, name: str) -> set[str]:
    with path.open() as file:
        return {row[name] for row in csv.DictReader(file)}


def test_the_code_of_a_site_that_never_trained_is_the_mean_of_those_that_did():
    coding = SiteTaskCode(("alder", "cedar"), ("T1w", "T2w"))
    pair = ContrastPair("T1w", "T2w")
    assert coding.code("birch", pair).tolist() == [0.5, 0.5, 1, 0, 0, 1]
    assert coding.code("cedar", pair).tolist() == [0, 1, 1, 0, 0, 1]


def test_a_reader_s_code_stands_for_every_site():
    coding = SiteTaskCode(("alder", "cedar"), ("T1w", "T2w"), reader="alder")
    pair = ContrastPair("T1w", "T2w")
    assert torch.equal(coding.code("cedar", pair), coding.code("alder", pair))


@pytest.mark.slow
def test_a_held_out_site_has_no_place_in_the_network_and_no_say_in_the_training(tmp_path: Path):
    federation = built(held(), tmp_path)
    assert federation.sites.names == ("alder", "cedar")
    assert [guest.name for guest in federation.holdouts] == ["birch"]
    weight = federation.start.weights["generator.mapper.layers.0.weight"]
    assert weight.shape[1] == 2 + 2 * 4


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [
        ("method.kind=fedavg",),
        ("method.kind=pflsynth",),
        ("method.kind=fedavg", "topology.kind=swarm"),
        ("method.kind=fedavg", "topology.kind=cyclic"),
        ("method.kind=central",),
    ],
)
def test_a_run_tests_its_model_where_nobody_trained(tmp_path: Path, options: Iterable[str]):
    study = held(*options)
    run(study, tmp_path / "run")
    [started] = [
        e for _, e in read_journal(tmp_path / "run/journal.jsonl") if isinstance(e, RunStarted)
    ]
    assert "birch" not in started.sites
    assert column(tmp_path / "run/scores.csv", "site") == {"alder", "cedar"}
    assert column(tmp_path / "run/unseen.csv", "site") == {"birch"}
    assert column(tmp_path / "run/unseen.csv", "task") == {"T1w->T2w"}  # FLAIR->T2w trains nowhere


@pytest.mark.slow
def test_a_shared_model_is_the_same_model_at_a_held_out_site(tmp_path: Path):
    """What the guest scores is what the shared file scores: no private part is missing."""
    study = held("method.kind=fedavg", "stop.test=last")
    state = run(study, tmp_path / "run")
    guest = built(study, tmp_path / "again").holdouts[0]
    guest.trainer.load(state.weights)
    examples = guest.task.evaluation_examples(guest.cohorts, "test")
    batch = guest.trainer.to_device(examples.batch([0], None))
    with torch.no_grad():
        score = guest.task.score(guest.task.predict(guest.trainer.model, batch), batch)
    with (tmp_path / "run/unseen.csv").open() as file:
        first = next(row for row in csv.DictReader(file) if row["metric"] == "psnr")
    assert float(first["value"]) == pytest.approx(score["psnr"].item(), abs=0.05)


@pytest.mark.parametrize("kind", ["segmentation", "classification"])
def test_every_task_can_hold_a_site_out(tmp_path: Path, kind: str):
    federation = built(tiny_of(kind, BIRCH, sites=2), tmp_path)
    [guest] = federation.holdouts
    assert len(guest.task.evaluation_examples(guest.cohorts, "test"))


def test_what_is_not_tested_is_said():
    assert notes(held()) == (
        "held-out site 'birch': nobody trains FLAIR->T2w, so it is not tested",
    )


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (("holdout_sites=['elm']",), "holdout_sites: the study has no site 'elm'; it has alder,"),
        (
            ("holdout_sites=['alder', 'birch', 'cedar', 'elder']",),
            "holdout_sites names every site of the study; one or more must train",
        ),
        ((BIRCH, "method.kind=local"), 'holdout_sites would do nothing for method "local"'),
        (
            (BIRCH, "method.kind=fedavg", "topology.kind=split", "topology.cut=encoder.2"),
            'holdout_sites makes no sense over topology "split"',
        ),
    ],
)
def test_a_held_out_site_that_no_model_can_reach_is_refused(options: Iterable[str], sentence: str):
    with pytest.raises(BadStudy) as refused:
        tiny(*options)
    assert str(refused.value).startswith(f"{TINY}: {sentence}")
