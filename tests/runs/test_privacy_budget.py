"""A real site's privacy budget holds over runs, whatever becomes of studies and run folders."""

import json
import shutil
from pathlib import Path

import pytest
import torch

from grandrounds.cli.privacy_output import check_all_join, planned_at
from grandrounds.core.errors import BadSite, BadStudy, SiteFailed
from grandrounds.core.events import BudgetReached, Event, RunFinished, SiteTrained
from grandrounds.core.messages import Reply, Train
from grandrounds.core.weights import digest
from grandrounds.data.availability import SiteSummary
from grandrounds.data.cohort import Cohort
from grandrounds.privacy.accounting import GaussianSteps, spending
from grandrounds.privacy.budget import Charge, PrivacyBudget
from grandrounds.report.analysis.facts import read_facts
from grandrounds.report.page.html import render_page
from grandrounds.runs.build import build_federation
from grandrounds.runs.costs import plan_run
from grandrounds.runs.loop import run_study as run
from grandrounds.runs.site_data import budget_in, open_site, open_sites
from grandrounds.study.site_file import SiteFile
from grandrounds.study.study import Study
from tests.helpers.federation import NOBODY, digests
from tests.helpers.private_points import private_lines, write_points

ROUNDS = 3
STUDY = ("rounds=3",)
LOTS = 2  # a round: 7 patients train, in lots of 4
PLAN = spending([GaussianSteps(8.0, 4 / 7, LOTS * ROUNDS)], 1e-5).epsilon


def budget(file: SiteFile) -> PrivacyBudget:
    found = budget_in(file)
    assert found is not None
    return found


def one_site(folder: Path, times: float = 1.0) -> tuple[Study, SiteFile]:
    """A study of one site, whose limit is so many times what a run takes."""
    return private_lines(*STUDY), write_points(folder / "oak", epsilon=PLAN * times * 1.001)


def epsilons(folder: Path) -> list[float]:
    lines = map(json.loads, (folder / "journal.jsonl").read_text().splitlines())
    return [line["epsilon"] for line in lines if line["event"] == "SiteTrained"]


def test_a_run_is_charged_once_and_tells_its_epsilon_by_round(tmp_path: Path):
    study, file = one_site(tmp_path)
    run(study, tmp_path / "run", files=[file])
    found = epsilons(tmp_path / "run")
    assert found == sorted(found)
    assert found[-1] == pytest.approx(PLAN)
    assert budget(file).spent().epsilon == pytest.approx(PLAN)
    assert [each.steps for each in budget(file).charges()] == [LOTS] * ROUNDS


def test_no_loss_of_a_patient_leaves_a_site_without_noise(tmp_path: Path):
    study, file = one_site(tmp_path)
    heard: list[Event] = []
    run(study, tmp_path / "run", files=[file], listeners=[heard.append])
    trained = [event for event in heard if isinstance(event, SiteTrained)]
    assert [event.losses for event in trained] == [{}] * ROUNDS


def test_a_run_that_was_lost_is_the_same_again_and_counts_once(tmp_path: Path):
    study, file = one_site(tmp_path)
    run(study, tmp_path / "run", files=[file])
    before = digests(tmp_path / "run")
    shutil.rmtree(tmp_path / "run")
    run(study, tmp_path / "run", files=[file])
    assert digests(tmp_path / "run") == before
    assert len(budget(file).charges()) == ROUNDS


@pytest.mark.parametrize("override", ['name="copy"', "seed=9", "training.learning_rate=0.2"])
def test_a_copy_of_a_study_does_not_reset_the_budget(tmp_path: Path, override: str):
    study, file = one_site(tmp_path)
    run(study, tmp_path / "run", files=[file])
    shutil.rmtree(tmp_path / "run")
    copy = private_lines(*STUDY, override)
    with pytest.raises(BadSite, match="all runs on its data would reach epsilon") as refusal:
        run(copy, tmp_path / "copy", files=[file])
    assert not (tmp_path / "copy").exists()
    assert str(refusal.value.safe) == (
        "this run would exceed the privacy budget of its data; take more noise or fewer rounds"
    )


def test_a_run_that_is_killed_and_resumed_counts_no_round_twice(tmp_path: Path):
    study, file = one_site(tmp_path)
    run(study, tmp_path / "whole", files=[file])
    (budget(file).folder / "charges.jsonl").unlink()

    def kill(event: Event) -> None:
        if isinstance(event, SiteTrained) and event.round == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(study, tmp_path / "run", files=[file], listeners=[kill])
    assert [each.round for each in budget(file).charges()] == [1, 2]
    run(study, tmp_path / "run", files=[file], resume=True)
    assert [each.round for each in budget(file).charges()] == [1, 2, 3]
    assert digests(tmp_path / "run") == digests(tmp_path / "whole")


def test_a_round_that_is_asked_for_from_another_start_has_other_noise_and_is_charged(
    tmp_path: Path,
):
    study, file = one_site(tmp_path, times=9)
    data = open_sites(study, [file])
    built = build_federation(plan_run(study), data, tmp_path / "run", study.machine(), NOBODY)
    [site] = built.sites.sites
    start = {n: t for n, t in site.first_weights().items() if site.travels(n)}
    moved = {name: tensor + 1e-6 for name, tensor in start.items()}

    def answer(weights: dict[str, torch.Tensor]) -> Reply:
        return site.answer(Train(round=1, since=0, weights=weights))

    first, again, other = answer(start), answer(start), answer(moved)
    assert digest(first.weights) == digest(again.weights)
    assert len(budget(file).charges()) == 2
    name = next(iter(first.weights))
    apart = float((first.weights[name] - other.weights[name]).abs().max())
    assert apart > 1e-3  # the noise does not cancel


def test_a_budget_that_is_reached_in_mid_run_ends_the_training_and_tests_the_model(tmp_path: Path):
    study, file = one_site(tmp_path, times=1.2)
    heard: list[Event] = []

    def another_run(event: Event) -> None:
        heard.append(event)
        if isinstance(event, SiteTrained) and event.round == 1:
            budget(file).charge(Charge("f" * 64, "other", 1, "data", 8.0, 4 / 7, 3))

    run(study, tmp_path / "run", files=[file], listeners=[another_run])
    [reached] = [event for event in heard if isinstance(event, BudgetReached)]
    assert reached == BudgetReached("oak", 2)
    assert isinstance(heard[-1], RunFinished)
    assert (tmp_path / "run" / "scores.csv").exists()
    assert budget(file).spent().epsilon <= PLAN * 1.2 * 1.001
    page = render_page(read_facts(tmp_path / "run"))
    assert "The privacy budget of Oak allowed no more than 2 rounds" in page
    assert [f"<td>{epsilon:.2f}</td>" in page for epsilon in epsilons(tmp_path / "run")] == [
        True
    ] * 2


def test_a_site_computes_nothing_that_its_budget_does_not_allow(tmp_path: Path):
    study, file = one_site(tmp_path)

    def another_run(event: Event) -> None:
        if not budget(file).charges():
            budget(file).charge(Charge("f" * 64, "other", 1, "data", 8.0, 4 / 7, LOTS * ROUNDS))

    with pytest.raises(SiteFailed, match="the privacy budget of its data is used up"):
        run(study, tmp_path / "run", files=[file], listeners=[another_run])
    assert len(budget(file).charges()) == 1


def test_check_refuses_a_run_that_reveals_more_than_the_site_or_the_study_allows(tmp_path: Path):
    study, file = one_site(tmp_path, times=0.5)
    opened = open_study(study, file)
    with pytest.raises(BadSite, match="its site file allows"):
        check_all_join(study, opened, [file])
    [planned] = planned_at(study, [cohort for cohort, _ in opened], [file])
    assert planned.run.epsilon == pytest.approx(PLAN)
    bounded = private_lines(*STUDY, "privacy.epsilon=0.01")
    with pytest.raises(BadStudy, match=r"privacy\.epsilon is 0\.01, and the run would reach"):
        check_all_join(bounded, open_study(bounded, file), [file])


def open_study(study: Study, file: SiteFile) -> list[tuple[Cohort, SiteSummary]]:
    return [open_site(study, study.site[0], file)]
