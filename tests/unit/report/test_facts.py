import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from statistics import fmean

import pytest

from grandrounds.core.errors import BadFolder
from grandrounds.core.events import Failed, Interrupted, RunResumed
from grandrounds.core.journal import Journal
from grandrounds.report.analysis.facts import Facts, arm_differences, read_facts
from grandrounds.report.analysis.folder import read_runs
from grandrounds.report.analysis.metrics import METRICS
from tests.helpers.run_folders import (
    ARMS,
    FEDAVG,
    PFLSYNTH,
    SITES,
    run_folder,
    write_comparison,
    write_run,
)

PSNR = METRICS["psnr"]

HEADER = "arm,seed,site,patient,case,task,metric,value,round\n"


@pytest.fixture(scope="module")
def facts(tmp_path_factory: pytest.TempPathFactory) -> Facts:
    return read_facts(write_comparison(tmp_path_factory.mktemp("comparison")))


def scored(tmp_path: Path, rows: str) -> Facts:
    folder = write_run(tmp_path / "run", replace(PFLSYNTH, sites=("alder", "birch")))
    (folder / "scores.csv").write_text(HEADER + rows)
    return read_facts(folder)


def row(site: str, patient: str, *, task: str = "t", value: float) -> str:
    return f"pflsynth,7,{site},{patient},{patient}-1,{task},psnr,{value},10\n"


def test_arms_stand_in_the_order_of_the_table(facts: Facts):
    assert [arm.title for arm in facts.arms] == [plan.title for plan in ARMS]
    assert facts.main_arm is facts.arms[0]
    assert [arm.local for arm in facts.arms] == [False, False, True, True]


def test_a_patient_with_many_slices_counts_once(tmp_path: Path):
    rows = 3 * row("alder", "a", value=20) + row("alder", "b", value=30)
    spread = scored(tmp_path, rows).arms[0].spread("alder", "t", "psnr")
    assert spread is not None
    assert (spread.mean, spread.sd, spread.n) == (25.0, 50**0.5, 2)


def test_a_single_patient_has_no_spread(tmp_path: Path):
    spread = scored(tmp_path, row("alder", "a", value=20)).arms[0].spread("alder", "t", "psnr")
    assert spread is not None
    assert (spread.mean, spread.sd, spread.n, spread.interval) == (20.0, None, 1, None)


def test_a_patient_with_many_tasks_counts_once_at_a_site(tmp_path: Path):
    rows = "".join(row("alder", p, task="t", value=20) for p in "abc")
    arm = scored(tmp_path, rows + row("alder", "a", task="u", value=32)).arms[0]
    found = arm.site_spread("alder", "psnr")
    assert found is not None
    assert (found.mean, found.n) == (22.0, 3)  # 26, 20 and 20


def test_sites_count_equally_whatever_their_patients(tmp_path: Path):
    rows = "".join(row("alder", p, value=20) for p in "abc") + row("birch", "a", value=30)
    overall = scored(tmp_path, rows).arms[0].overall("psnr")
    assert overall is not None
    assert overall.mean == 25.0


def test_an_average_over_hospitals_needs_all_hospitals(tmp_path: Path):
    assert scored(tmp_path, row("alder", "a", value=20)).arms[0].overall("psnr") is None


def test_scores_are_those_that_were_written(facts: Facts):
    found = facts.arms[1].site_spread("cedar", "psnr")
    assert found is not None
    assert found.mean == pytest.approx(19.9)
    assert found.n == 8


def test_the_best_local_arm_may_differ_from_site_to_site(tmp_path: Path):
    same = replace(ARMS[2], levels={**ARMS[2].levels, "alder": 26.0})
    facts = read_facts(write_comparison(tmp_path / "c", [*ARMS[:2], same, ARMS[3]]))
    best = {site: facts.best_local(site, PSNR) for site in SITES}
    assert [arm.name for arm in best.values() if arm] == ["local", *["local-plain"] * 3]


def test_a_difference_is_that_of_the_levels_written(facts: Facts):
    found = facts.difference(facts.arms[0], facts.arms[3], "birch")
    assert found is not None
    assert found.mean == pytest.approx(-0.3)
    assert (found.n, found.better) == (8, 0)


def test_lower_is_a_gain_where_lower_is_better(facts: Facts):
    found = arm_differences(*facts.arms[:2], site="alder", metric=METRICS["nrmse"])
    assert fmean(found) == pytest.approx(0.02)


def test_work_adds_up_over_rounds_and_shows_absences(tmp_path: Path):
    plan = replace(PFLSYNTH, absent={"cedar": (3, 4), "birch": tuple(range(1, 11))})
    work = {w.site: w for w in read_facts(write_run(tmp_path / "run", plan)).arms[0].runs[0].work}
    assert (work["alder"].steps, work["alder"].bytes_up) == (720, 17_125_160)
    assert work["cedar"].rounds == (1, 2, 5, 6, 7, 8, 9, 10)
    assert (work["birch"].rounds, work["birch"].steps) == ((), 0)


@pytest.mark.parametrize(("rounds", "rising"), [(1, False), (9, True), (10, False)])
def test_whether_scores_were_still_rising_is_read_from_the_curve(
    tmp_path: Path, rounds: int, rising: bool
):
    facts = read_facts(write_run(tmp_path / "run", replace(PFLSYNTH, rounds=rounds)))
    assert facts.arms[0].still_rising is rising


@pytest.mark.slow
@pytest.mark.parametrize(
    ("patients", "intervals", "tests"), [(1, False, False), (2, True, True), (8, True, True)]
)
def test_whether_there_are_intervals_and_tests_is_known(
    tmp_path: Path, patients: int, intervals: bool, tests: bool
):
    arms = [replace(plan, patients=patients) for plan in ARMS]
    facts = read_facts(write_comparison(tmp_path / "c", arms))
    assert (facts.has_intervals, facts.has_tests) == (intervals, tests)


def test_rounds_before_a_resume_count_once(tmp_path: Path):
    folder = write_run(tmp_path / "run", PFLSYNTH, until=6)
    Journal(folder / "journal.jsonl").append(RunResumed(4))
    [run] = read_facts(folder).arms[0].runs
    assert run.rounds == (1, 2, 3, 4)
    assert run.work[0].steps == 4 * 72
    assert [round for round, _ in run.curves["alder"]] == [1, 2, 3, 4]


def test_a_resume_takes_back_an_ending(tmp_path: Path):
    folder = write_run(tmp_path / "run", PFLSYNTH, until=4)
    journal = Journal(folder / "journal.jsonl")
    journal.append(Interrupted(4))
    assert read_facts(folder).arms[0].runs[0].ending == Interrupted(4)
    journal.append(RunResumed(4))
    assert read_facts(folder).arms[0].runs[0].ending is None


def test_a_failure_is_kept(tmp_path: Path):
    folder = write_run(tmp_path / "run", PFLSYNTH, until=2)
    failed = Failed("alder", 3, "train", "ValueError", "no", "")
    Journal(folder / "journal.jsonl").append(failed)
    assert read_facts(folder).arms[0].runs[0].ending == failed


def test_an_arm_that_has_not_started_is_waiting(tmp_path: Path):
    folder = write_comparison(tmp_path / "c", [PFLSYNTH, FEDAVG])
    (run_folder(folder, "pflsynth") / "journal.jsonl").unlink()
    facts = read_facts(folder)
    assert [entry.title for entry in facts.waiting] == ["pFLSynth"]
    assert facts.main_arm is None


def test_what_a_run_computes_is_its_steps_times_the_work_of_one(facts: Facts):
    run = facts.arms[0].runs[0]
    assert run.workload is not None
    assert run.workload.parameters == 545_569
    assert run.flops == 4 * 10 * 72 * 5_000_000_000
    assert run.seconds == pytest.approx(10 * (1.6 + 1.8 + 2.0 + 2.2))
    assert run.num_bytes == 4 * 10 * 2 * 1_712_516


def test_an_older_journal_tells_no_operations(tmp_path: Path):
    folder = write_run(tmp_path / "run", PFLSYNTH)
    path = folder / "journal.jsonl"
    lines = [line for line in path.read_text().splitlines() if "WorkSet" not in line]
    path.write_text("\n".join(lines) + "\n")
    assert read_facts(folder).arms[0].runs[0].flops is None


def test_sites_and_tasks_are_the_study_s(facts: Facts):
    assert facts.sites == SITES
    assert facts.tasks("birch") == ("T1w->T2w", "FLAIR->T2w")
    assert facts.num_test_patients == 32


def test_a_site_that_is_held_out_is_none_of_those_that_gain_or_lose(tmp_path: Path):
    folder = write_run(tmp_path / "run", replace(PFLSYNTH, sites=("alder", "birch")))
    text = (folder / "study.toml").read_text()
    more = '\n[[site]]\nname = "yew"\ndata = "simulated"\ntasks = ["T1w->T2w"]\n'
    (folder / "study.toml").write_text(f'holdout_sites = ["yew"]\n{text}{more}')
    facts = read_facts(folder)
    assert facts.sites == ("alder", "birch")
    assert facts.arms[0].overall("psnr") is not None


STUDY = '[method]\nkind = "fedavg"\n[task]\nkind = "synthesis"\n[[site]]\nname = "{}"'
ARM = 'seeds = [7]\n[[arm]]\nname = "{}"\ntitle = "X"'


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        ("study.toml", None, "neither a run nor a comparison"),
        ("study.toml", "name =", "not valid TOML"),
        ("study.toml", 'name = "x"', "'site' is missing or wrong"),
        ("study.toml", STUDY.format("../alder"), "site '../alder': a name has letters"),
        ("study.toml", STUDY.format("al|der"), "site 'al[|]der': a name has letters"),
        ("arms.toml", ARM.format("../../startup"), "arm '../../startup': a name has letters"),
        ("arms.toml", ARM.format("/etc"), "arm '/etc': a name has letters"),
        ("arms.toml", ARM.format("NUL"), "arm 'NUL': Windows keeps this name"),
        ("journal.jsonl", None, "no journal here"),
        ("journal.jsonl", "", "no run has started here yet"),
        ("scores.csv", "arm,seed\n", "no column site, patient"),
        ("scores.csv", HEADER + "a,7,alder,p,c,t,psnr,high,1\n", "line 2: value and round"),
        ("scores.csv", HEADER + "a,7,alder,p,c,t,psnr,nan,1\n", "line 2: psnr is nan"),
        ("scores.csv", HEADER + "a,7,alder,p,c,t,beauty,1,1\n", "metric 'beauty'"),
        ("scores.csv", HEADER + "a,7,yew,p,c,t,psnr,1,1\n", "site 'yew'"),
        ("sites/alder/panels.npz", "no zip", "not a file of panels"),
        ("arms.toml", "[[arm]]\nname = 3", "cannot be read"),
        ("arms.toml", '[[arm]]\nname = "x"\ntitle = "X"', "must hold seeds"),
        ("arms.toml", "seeds = [1]\narm = []", "at least one"),
        ("arms.toml", 'seeds = []\n[[arm]]\nname = "x"\ntitle = "X"', "and one seed"),
        ("arms.toml", 'seeds = [1]\n[[arm]]\nname = "x"\ntitle = "X"', "none of the 1 arms"),
    ],
)
def test_a_bad_folder_is_explained(tmp_path: Path, file: str, text: str | None, message: str):
    folder = write_run(tmp_path / "run", PFLSYNTH)
    (folder / file).unlink() if text is None else (folder / file).write_text(text)
    with pytest.raises(BadFolder, match=message):
        read_facts(folder)


def test_words_that_a_table_quotes_are_read_as_they_were(tmp_path: Path):
    folder = write_run(tmp_path / "run", PFLSYNTH)
    table = folder / "scores.csv"
    table.write_text(table.read_text().replace(",alder-0,", ",'=1+1,").replace("alder-1", "''@x"))
    [arm] = read_runs(folder).arms
    patients = {case.patient for case in arm.runs[0].cases if case.site == "alder"}
    assert {"=1+1", "'@x", "alder-2"} <= patients


def test_a_missing_folder_is_explained(tmp_path: Path):
    with pytest.raises(BadFolder, match="no such folder"):
        read_facts(tmp_path / "absent")


@pytest.mark.slow
def test_the_report_needs_neither_torch_nor_monai():
    code = "import sys, grandrounds.report.page.html; print({'torch', 'monai'} & set(sys.modules))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "set()"
