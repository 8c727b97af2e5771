"""Arms that train nothing: their scores are those of other arms' models, chosen or averaged."""

import csv
import shutil
import tomllib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from statistics import fmean

import pytest
import torch

from grandrounds.core.errors import BadFolder, BadStudy
from grandrounds.core.events import Event, RunFinished, SiteValidated
from grandrounds.core.journal import Journal, read_journal
from grandrounds.core.run_folder import ComparisonFolder, RunFolder
from grandrounds.report.analysis.facts import read_facts
from grandrounds.report.cards.facts import read_card_facts
from grandrounds.report.page.html import render_page
from grandrounds.report.prose.sentences import progress_sentence
from grandrounds.runs.arms import arms_of, read_arms
from grandrounds.runs.comparison import Comparison, ComparisonRun
from grandrounds.runs.derived import average_scores, best_by_validation, derived_arms
from grandrounds.runs.evaluate import matrix, model_scorer
from grandrounds.runs.folder import TrainedRun, find_runs
from grandrounds.runs.loop import run_study as run
from grandrounds.runs.site_data import open_sites
from grandrounds.study.file import Table, example, read_table
from grandrounds.tasks.metrics import psnr
from tests.helpers.federation import tiny
from tests.helpers.task_studies import KINDS, tiny_of

Row = tuple[str, ...]
CASE = ("site", "patient", "case", "task", "metric")
LABELS = ("fedavg", "local", "local:steps=x2", "alone", "ensemble", "sites-average")


def two_sites() -> Table:
    table = read_table(example("tiny"))
    return table | {"rounds": 1, "site": table["site"][:2]}


def comparison(folder: Path, *labels: str) -> Comparison:
    trained, others = read_arms(labels or LABELS)
    studies = {arm: arm.study(two_sites(), []) for arm in trained}
    return Comparison(folder, studies, derived=derived_arms(others, studies))


def rows(path: Path, *, site: str = "") -> dict[Row, str]:
    with path.open(newline="") as file:
        found = [row for row in csv.DictReader(file) if site in ("", row["site"])]
    return {tuple(row[name] for name in CASE): row["value"] for row in found}


def scores(folder: Path, arm: str, *, site: str = "") -> dict[Row, str]:
    return rows(ComparisonFolder(folder).run(arm, 1).scores, site=site)


def record(folder: Path, arm: str) -> Table:
    return tomllib.loads(ComparisonFolder(folder).run(arm, 1).derived.read_text())


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A comparison of two sites with all derived arms."""
    folder = tmp_path_factory.mktemp("derived") / "compared"
    comparison(folder).run(lambda *_: None)
    return folder


@pytest.fixture
def copied(whole: Path, tmp_path: Path) -> Path:
    """A copy of that comparison, to be changed."""
    return Path(shutil.copytree(whole, tmp_path / "compared"))


def test_of_equals_and_where_nobody_validates_the_first_arm_is_taken():
    found = {"a": {"x": 1.0, "y": 2.0}, "b": {"x": 3.0, "y": 2.0}}
    assert [best_by_validation(found, site) for site in ("x", "y", "z")] == ["b", "a", "a"]


@pytest.mark.slow
def test_alone_has_at_each_hospital_the_scores_of_the_arm_that_validated_best(whole: Path):
    for choice in record(whole, "alone")["site"]:
        site, taken = str(choice["name"]), str(choice["arm"])
        assert scores(whole, "alone", site=site) == scores(whole, taken, site=site)
        journal = ComparisonFolder(whole).run(taken, 1).journal.read_text()
        assert f'"score": {choice["validation"]}' in journal
    assert {choice["name"] for choice in record(whole, "alone")["site"]} == {"alder", "birch"}


@pytest.mark.slow
def test_alone_chooses_by_validation_though_the_other_arm_tests_far_better(copied: Path):
    before = {c["name"]: c["arm"] for c in record(copied, "alone")["site"]}
    left = ({"local", "local-steps-x2"} - {before["alder"]}).pop()
    table = ComparisonFolder(copied).run(left, 1).scores
    lines = list(csv.DictReader(table.read_text().splitlines()))
    with table.open("w", newline="") as file:
        writer = csv.DictWriter(file, lines[0].keys(), lineterminator="\n")
        writer.writeheader()
        writer.writerows(line | {"value": "99.0"} for line in lines)
    ComparisonFolder(copied).run("alone", 1).scores.unlink()
    comparison(copied).run(lambda *_: pytest.fail("nothing is trained anew"))
    assert {c["name"]: c["arm"] for c in record(copied, "alone")["site"]} == before
    assert scores(copied, "alone", site="alder") == scores(copied, before["alder"], site="alder")


@pytest.mark.slow
def test_alone_takes_the_other_arm_where_that_validates_better(copied: Path):
    taken = {c["name"]: c["arm"] for c in record(copied, "alone")["site"]}
    validate_at(ComparisonFolder(copied).run(str(taken["alder"]), 1), "alder", 0.5)
    ComparisonFolder(copied).run("alone", 1).scores.unlink()
    comparison(copied).run(lambda *_: pytest.fail("nothing is trained anew"))
    now = {c["name"]: c["arm"] for c in record(copied, "alone")["site"]}
    assert now["alder"] != taken["alder"]
    assert now["birch"] == taken["birch"]
    assert scores(copied, "alone", site="alder") == scores(copied, str(now["alder"]), site="alder")


def validate_at(folder: RunFolder, site: str, score: float) -> None:
    """Write in a run's journal that a site validated at this score."""
    events = [event for _, event in read_journal(folder.journal)]
    folder.journal.unlink()
    for event in events:
        told = isinstance(event, SiteValidated) and event.site == site
        Journal(folder.journal).append(replace(event, score=score) if told else event)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_the_mean_of_a_model_and_itself_is_that_model(tmp_path: Path, kind: str):
    run(tiny_of(kind, "rounds=1", "method.kind=local", sites=2), tmp_path)
    finished = TrainedRun(tmp_path)
    for score in average_scores([finished, finished], (), of_all_sites=False):
        for metric, value in score.values.items():
            case = (score.site, score.patient, score.case, score.task, metric)
            assert rows(RunFolder(tmp_path).scores)[case] == repr(value)


@pytest.mark.slow
def test_the_sites_average_is_the_mean_of_the_probabilities_of_all_sites_models(tmp_path: Path):
    run(tiny_of("classification", "rounds=1", "method.kind=local", sites=3), tmp_path)
    finished = TrainedRun(tmp_path)
    by_model = matrix(finished, ())
    found = average_scores([finished], (), of_all_sites=True)
    assert len(found) == len(by_model["alder"])
    for number, score in enumerate(found):
        each = [of_model[number].values["probability"] for of_model in by_model.values()]
        assert score.values["probability"] == pytest.approx(fmean(each))
        assert len(set(each)) == 3, "three models predict three things"


@pytest.mark.slow
def test_the_ensemble_is_the_mean_image_of_two_models_of_the_hospital(whole: Path):
    folder = ComparisonFolder(whole)
    runs = [TrainedRun(r.path) for r in (folder.run("local", 1), folder.again("local", 1))]
    with model_scorer(runs[0].study) as scorer:
        task, trainer = scorer.plan.task, scorer.trainer
        cohorts = open_sites(runs[0].study, ())["alder"].cohorts
        examples = task.evaluation_examples(cohorts, "test")
        batch, images = trainer.to_device(examples.batch([0], None)), list[torch.Tensor]()
        for each in runs:
            trainer.load(each.model_weights("alder"))
            with torch.no_grad():
                images.append(task.predict(trainer.model, batch))
        by_hand = psnr((images[0] + images[1]) / 2, (batch["target"] + 1) / 2)
    case = examples.case(0)
    value = scores(whole, "ensemble")[case.site, case.patient, case.case, case.task, "psnr"]
    assert float(value) == pytest.approx(by_hand.item(), rel=1e-5)
    assert not torch.equal(*images)


@pytest.mark.slow
def test_a_hospital_whose_task_no_other_has_is_left_with_its_own_model(whole: Path):
    mine, average = scores(whole, "local"), scores(whole, "sites-average")
    own = {row: value for row, value in average.items() if row[3] in ("T2w->PDw", "FLAIR->T2w")}
    assert own
    for row, value in own.items():
        assert float(value) == pytest.approx(float(mine[row]), rel=1e-5)
    both = {row: value for row, value in average.items() if row not in own}
    assert all(value != mine[row] for row, value in both.items())


@pytest.mark.slow
def test_the_second_model_is_trained_on_the_same_data_from_other_first_weights(whole: Path):
    folder = ComparisonFolder(whole)
    first, second = (TrainedRun(r.path) for r in (folder.run("local", 1), folder.again("local", 1)))
    assert (first.study.seed, second.study.seed) == (1, 1)
    assert first.study.training_seed == 1 != second.study.training_seed
    targets = [
        open_sites(each.study, ())["alder"].cohorts[0].splits["train"][0].images
        for each in (first, second)
    ]
    assert (targets[0] == targets[1]).all()
    mine, other = (each.model_weights("alder") for each in (first, second))
    assert any(not torch.equal(mine[name], other[name]) for name in mine)
    assert not any("again" in row for row in (whole / "scores.csv").read_text().splitlines())


@pytest.mark.slow
def test_derived_arms_stand_in_every_table_beside_the_others(whole: Path):
    with (whole / "scores.csv").open(newline="") as file:
        found = {row["arm"] for row in csv.DictReader(file)}
    assert found == {"fedavg", "local", "local-steps-x2", "alone", "ensemble", "sites-average"}
    facts = read_facts(whole)
    assert set(facts.compared) == found - {"fedavg"}
    alone = next(arm for arm in facts.arms if arm.name == "alone")
    assert facts.best_local("alder", facts.metrics[0]) is alone
    assert "Nothing was trained for it: at each hospital" in progress_sentence(alone)
    assert "Alder took Local only (plain network" in progress_sentence(alone)
    assert [arm.name for arm in facts.arms if arm.federated] == ["fedavg"]
    page = render_page(facts)
    assert "nothing is trained" in page
    assert "the one that each hospital chose by validation" in page


@pytest.mark.slow
def test_a_derived_arm_has_no_model_of_its_own(whole: Path):
    with pytest.raises(BadFolder, match="its scores are derived from other arms' models"):
        TrainedRun(ComparisonFolder(whole).run("alone", 1).path)
    with pytest.raises(BadFolder, match="so there is no model for a card"):
        read_card_facts(whole, arm="alone", seed=1)
    names = [each.score_label.arm for each in find_runs(whole)]
    assert names == ["fedavg", "local", "local-steps-x2"]


def stop_after(runs: int) -> Callable[[ComparisonRun, Event], None]:
    heard: list[Event] = []

    def stop(cell: ComparisonRun, event: Event) -> None:
        heard.extend([event] if isinstance(event, RunFinished) else [])
        if len(heard) == runs:
            raise KeyboardInterrupt

    return stop


@pytest.mark.slow
def test_stopped_between_arms_it_goes_on_to_the_same_table(tmp_path: Path, whole: Path):
    with pytest.raises(KeyboardInterrupt):
        comparison(tmp_path).run(stop_after(2))
    assert not (tmp_path / "arms/alone").exists()
    comparison(tmp_path).run(lambda *_: None)
    assert (tmp_path / "scores.csv").read_text() == (whole / "scores.csv").read_text()


@pytest.mark.slow
def test_what_is_derived_is_kept_until_there_is_more_to_derive_it_from(copied: Path):
    path = ComparisonFolder(copied).run("alone", 1).scores
    before = path.stat().st_mtime_ns
    comparison(copied).run(lambda *_: pytest.fail("all was done"))
    assert path.stat().st_mtime_ns == before
    comparison(copied, *LABELS, "local:task.generator=personalised").run(lambda *_: None)
    assert record(copied, "alone")["sources"][-1] == "local-task-generator-personalised"


@pytest.mark.parametrize(
    ("labels", "why"),
    [
        (("fedavg", "alone"), "arm 'alone': no arm of this comparison trains alone; give one"),
        (("local", "alone"), "there is nothing to choose from but local; give longer ones, too"),
        (("local", "local:steps=x2", "alone:local"), "it chooses among all arms that train alone"),
        (("local", "ensemble:fedavg"), "no arm 'fedavg' of this comparison trains alone; those"),
        (("local", "ensemble@swarm"), "it trains nothing, so it has no topology"),
        (
            ("local", "ensembel"),
            "'ensembel' is unknown; .*derived from other arms: alone",
        ),
    ],
)
def test_derived_arms_without_what_they_are_derived_from_are_refused(
    tmp_path: Path, labels: tuple[str, ...], why: str
):
    with pytest.raises(BadStudy, match=why):
        comparison(tmp_path, *labels)


def test_a_derived_arm_names_the_arm_that_it_is_derived_from():
    trained = arms_of(["local", "local:task.generator=personalised"])
    made = {arm: arm.study(two_sites(), []) for arm in trained}
    [found] = derived_arms(arms_of(["ensemble:local:task.generator=personalised"]), made)
    assert [arm.label for arm in found.sources] == ["local:task.generator=personalised"]
    assert found.title == "Ensemble of two models trained alone (Local only (personalised network))"
    assert found.terms.endswith("each hospital trains that arm twice, and predicts twice")


def test_training_has_a_seed_of_its_own_where_the_study_says_so():
    assert tiny().training_seed == tiny("seed=1").training_seed == 1
    assert tiny("training.seed=5").training_seed == 5
