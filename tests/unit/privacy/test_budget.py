import stat
from dataclasses import replace
from math import inf
from multiprocessing import get_context
from pathlib import Path

import pytest

from grandrounds.core.errors import BadSite
from grandrounds.privacy.accounting import GaussianSteps, spending
from grandrounds.privacy.budget import BudgetUsedUp, Charge, PrivacyBudget, PrivacyLimit, budget_of

STEP = GaussianSteps(10.0)
CHARGE = Charge("a" * 64, "b" * 64, 1, "c" * 64, 10.0, 1.0, 1)


def _charge(number: int, study: str = "b" * 64) -> Charge:
    return replace(CHARGE, release=f"{number:064x}", round=number, study=study)


def _budget(folder: Path, steps: int | None = None) -> PrivacyBudget:
    """A budget for so many steps and half of another."""
    epsilon = spending([GaussianSteps(10.0, 1.0, steps)], 1e-5).epsilon if steps else inf
    return PrivacyBudget("alder", folder, PrivacyLimit(epsilon * 1.01, 1e-5))


def test_a_release_that_is_repeated_counts_once_and_another_one_counts(tmp_path: Path):
    budget = _budget(tmp_path)
    for number in (1, 2, 2, 1):
        budget.charge(_charge(number))
    assert [each.round for each in budget.charges()] == [1, 2]
    assert budget.spent() == spending([STEP, STEP], 1e-5)


def test_what_would_exceed_the_limit_is_refused_and_not_charged(tmp_path: Path):
    budget = _budget(tmp_path, steps=2)
    budget.charge(_charge(1))
    assert budget.allows(STEP)
    budget.charge(_charge(2))
    assert not budget.allows(STEP)
    with pytest.raises(BudgetUsedUp, match="is used up"):
        budget.charge(_charge(3))
    budget.charge(_charge(2))  # a resumed run repeats what was charged
    assert len(budget.charges()) == 2


def test_another_name_or_seed_of_a_study_does_not_reset_the_budget(tmp_path: Path):
    budget, plan = _budget(tmp_path, steps=3), [GaussianSteps(10.0, 1.0, 2)]
    budget.check(plan, "first")
    for number in (1, 2):
        budget.charge(_charge(number, "first"))
    budget.check(plan, "first")  # resumed, or started again
    with pytest.raises(BadSite, match="would reach epsilon"):
        budget.check(plan, "copy")


def test_a_study_that_was_charged_more_than_planned_is_not_taken_for_its_plan(tmp_path: Path):
    budget = _budget(tmp_path, steps=4)
    for number in range(4):
        budget.charge(_charge(number, "first"))
    assert budget.after([STEP], "first") == spending([GaussianSteps(10.0, 1.0, 4)], 1e-5)
    with pytest.raises(BadSite, match="would reach epsilon"):
        budget.check([STEP], "second")


def test_a_torn_last_line_is_cut_and_a_damaged_one_stops_everything(tmp_path: Path):
    budget = _budget(tmp_path)
    budget.charge(_charge(1))
    path = tmp_path / "charges.jsonl"
    with path.open("ab") as file:
        file.write(b'{"release": "to')  # the process was killed while it wrote
    budget.charge(_charge(2))
    assert [each.round for each in budget.charges()] == [1, 2]
    path.write_bytes(path.read_bytes().replace(b'"steps": 1', b'"steps": -9', 1))
    with pytest.raises(BadSite, match="line 1: cannot be read as a charge"):
        budget.charge(_charge(3))


def test_only_the_owner_can_read_what_was_charged(tmp_path: Path):
    budget = budget_of("alder", tmp_path / "slices.npz", None)
    budget.charge(CHARGE)
    assert budget.folder == tmp_path / "slices.npz.privacy"
    assert stat.S_IMODE(budget.folder.stat().st_mode) == 0o700
    assert stat.S_IMODE((budget.folder / "charges.jsonl").stat().st_mode) == 0o600


def _charge_many(folder: Path, first: int) -> None:
    for number in range(first, first + 5):
        _budget(folder).charge(_charge(number))


@pytest.mark.slow
def test_two_runs_at_a_time_forget_no_charge(tmp_path: Path):
    start = get_context("fork").Process
    runs = [start(target=_charge_many, args=(tmp_path, first)) for first in (0, 100)]
    for run in runs:
        run.start()
    for run in runs:
        run.join()
    assert len(_budget(tmp_path).charges()) == 10
