"""A run from first to last: the folder, the exit codes, and every way to be stopped."""

import json
import resource
import signal
import subprocess
import sys
import tomllib
from dataclasses import replace
from pathlib import Path

import pytest

from grandrounds.core.errors import BadFolder
from grandrounds.core.events import Failed, Interrupted, RoundFinished, RunFinished, SiteTrained
from grandrounds.core.weights import read
from grandrounds.runs.folder import lock_folder
from grandrounds.runs.loop import run_study as run
from grandrounds.study.file import fingerprint, read_study
from grandrounds.study.study import Study
from tests.helpers.command import Done, events, inside, kill, program, started, wait_for
from tests.helpers.federation import TINY, digests, rows, tiny
from tests.helpers.killed_run import Moment, killed

NAMES = ("alder", "birch", "cedar", "elder")
FILES = {
    ".lock",
    "digests.csv",
    "journal.jsonl",
    "ledger.jsonl",
    "model/last.safetensors",
    "model/shared.safetensors",
    "report.html",
    "rounds.csv",
    "scores.csv",
    "state/round-000002.safetensors",
    "state/round-000003.safetensors",
    "study.toml",
    *[
        f"sites/{name}/{file}"
        for name in NAMES
        for file in (
            "ledger.jsonl",
            "panels.npz",
            "private-last.safetensors",
            "private.safetensors",
            "profile.json",
            "validation.jsonl",
            "state/round-000001.safetensors",
            "state/round-000002.safetensors",
            "state/round-000003.safetensors",
        )
    ],
}
WITHOUT_TORCH = """
import sys
from grandrounds.cli import main
try:
    main()
except SystemExit as end:
    sys.exit(3 if "torch" in sys.modules else end.code)
"""
HINT = (
    "grandrounds: stopped; every finished round is saved. "
    "Give the same command again with --resume to go on."
)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of tiny.toml, run in this process from end to end."""
    folder = tmp_path_factory.mktemp("undisturbed") / "run"
    run(tiny(), folder)
    return folder


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Done]:
    """The folder of tiny.toml, run by the command, and what the command said."""
    folder = tmp_path_factory.mktemp("finished") / "run"
    return folder, program("run", TINY, "--out", folder, "--json")


@pytest.mark.slow
def test_a_run_ends_with_code_0_and_all_files_of_the_contract(finished: tuple[Path, Done]):
    folder, done = finished
    assert done.code == 0, done.err
    assert {str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file()} == FILES


@pytest.mark.slow
def test_the_resolved_study_stands_in_the_folder(finished: tuple[Path, Done]):
    folder, _ = finished
    assert read_study(folder / "study.toml") == tiny()
    assert read(folder / "model/shared.safetensors")[1]["study"] == fingerprint(tiny())


@pytest.mark.slow
def test_the_tables_have_the_columns_of_the_contract(finished: tuple[Path, Done]):
    folder, _ = finished
    scores, rounds = rows(folder / "scores.csv"), rows(folder / "rounds.csv")
    assert ",".join(scores[0]) == "arm,seed,site,patient,case,task,metric,value,round"
    assert len(scores) == 4 * 2 * 2 * 4 * 4  # sites, tasks, patients, slices, metrics
    assert {row["site"] for row in scores} == set(NAMES)
    assert ",".join(rounds[0]).startswith("round,site,took_part,seconds,bytes_up,bytes_down,loss:")
    assert [(row["round"], row["site"]) for row in rounds] == [
        (str(round), name) for round in (1, 2, 3) for name in NAMES
    ]
    assert {row["took_part"] for row in rounds} == {"True"}
    assert list(rows(folder / "digests.csv")[0]) == ["round", "digest"]


@pytest.mark.slow
def test_the_journal_is_json_lines_from_start_to_finish(finished: tuple[Path, Done]):
    folder, _ = finished
    lines = [json.loads(line) for line in (folder / "journal.jsonl").read_text().splitlines()]
    assert lines[0]["event"] == "RunStarted"
    assert lines[-1]["event"] == "RunFinished"
    assert lines[-1]["best_round"] == read_best(folder)
    moments = [line["time"] for line in lines]
    assert moments == sorted(moments)


def read_best(folder: Path) -> int:
    return int(read(folder / "model/shared.safetensors")[1]["round"])


@pytest.mark.slow
def test_another_process_gets_the_same_bits(finished: tuple[Path, Done], undisturbed: Path):
    folder, _ = finished
    assert digests(folder) == digests(undisturbed)
    assert rows(folder / "scores.csv") == rows(undisturbed / "scores.csv")


@pytest.mark.slow
def test_results_go_to_stdout_as_one_json_object_and_progress_to_stderr(
    finished: tuple[Path, Done],
):
    folder, done = finished
    [arm] = json.loads(done.out)["arms"].values()
    assert arm["digest"] == digests(folder)[-1]
    assert arm["rounds"] == 3
    assert set(arm["sites"]) == set(NAMES)
    values = [float(r["value"]) for r in rows(folder / "scores.csv") if r["metric"] == "psnr"]
    assert arm["mean"]["psnr"] == pytest.approx(sum(values) / len(values))
    assert "3/3 rounds" in done.err


@pytest.mark.slow
def test_a_finished_run_resumed_is_the_same_run(
    undisturbed: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    before = digests(undisturbed), rows(undisturbed / "scores.csv")
    words = ("run", TINY, "--out", undisturbed, "--resume", "--quiet")
    done = inside(monkeypatch, capsys, *words)
    assert done == Done(0, f"report: {undisturbed / 'report.html'}\n", "")
    assert (digests(undisturbed), rows(undisturbed / "scores.csv")) == before


@pytest.mark.slow
def test_a_folder_that_holds_a_run_is_left_alone_without_resume(
    undisturbed: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    done = inside(monkeypatch, capsys, "run", TINY, "--out", undisturbed, "--quiet")
    assert done == Done(
        2,
        "",
        f"grandrounds: {undisturbed}: holds a run already, 3 rounds far; "
        "continue it with --resume, or choose another --out\n",
    )


@pytest.mark.slow
def test_a_run_is_not_resumed_with_another_study(
    undisturbed: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    changed = ("--set", "training.batch_size=2", "--rounds", "4")
    words = ("run", TINY, "--out", undisturbed, "--resume", "--quiet", *changed)
    before = digests(undisturbed)
    assert inside(monkeypatch, capsys, *words) == Done(
        2,
        "",
        f"grandrounds: {undisturbed}: its run began with another study; "
        "changed: rounds, training.batch_size. "
        "Resume with the study as it was, or start anew with another --out.\n",
    )
    assert digests(undisturbed) == before


@pytest.mark.slow
def test_a_report_is_written_anew_without_torch(undisturbed: Path):
    (undisturbed / "report.html").unlink(missing_ok=True)
    words = [sys.executable, "-c", WITHOUT_TORCH, "report", str(undisturbed), "--json"]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert (undisturbed / "report.html").stat().st_size > 10_000
    assert list(json.loads(done.stdout)["arms"]) == ["pflsynth"]


def test_help_needs_no_torch():
    words = [sys.executable, "-c", WITHOUT_TORCH, "--help"]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    for command in ("demo", "run", "check", "compare", "report", "schema"):
        assert command in done.stdout


def test_check_says_what_a_study_means_and_costs_and_writes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.chdir(tmp_path)
    done = inside(monkeypatch, capsys, "check", TINY, "--json")
    facts = json.loads(done.out)
    assert (done.code, done.err) == (0, "")
    assert facts["sha256"] == fingerprint(tiny())
    assert facts["bytes_per_run"] == 3 * facts["bytes_per_round"] == 3 * 4 * 3 * 105_316
    assert facts["memory"] > 600 * 2**20
    assert {g["group"]: g["policy"] for g in facts["policy"]["groups"]}["personal"] == "private"
    assert list(tmp_path.iterdir()) == []


def test_check_prints_the_study_for_people(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    done = inside(monkeypatch, capsys, "check", TINY)
    assert done.code == 0
    toml, _, rest = done.out.partition("Tensor policy")
    assert tomllib.loads(toml)["name"] == "tiny"
    assert f"SHA-256 of the resolved study: {fingerprint(tiny())}" in rest
    assert inside(monkeypatch, capsys, "check", TINY, "--quiet") == Done(0, "", "")


def test_schema_prints_json(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    done = inside(monkeypatch, capsys, "schema")
    assert (done.code, done.err) == (0, "")
    assert json.loads(done.out)["additionalProperties"] is False


# Stopped, killed, crowded out.


@pytest.mark.slow
@pytest.mark.parametrize(
    "how", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.full)]
)
def test_a_run_that_is_stopped_says_how_to_go_on_and_does(
    how: signal.Signals, tmp_path: Path, undisturbed: Path
):
    folder = tmp_path / "run"
    with started("run", TINY, "--out", folder, "--quiet") as process:
        wait_for(folder, lambda told: any(isinstance(e, RoundFinished) for e in told))
        with pytest.raises(BadFolder) as refused:
            run(tiny(), folder, resume=True)
        process.send_signal(how)
        out, err = process.communicate()
    assert str(refused.value) == (
        f"{folder}: another process is running in it; wait or choose another --out"
    )
    assert isinstance(events(folder)[-1], Interrupted)
    kept = list(digests(folder))
    assert kept in (list(digests(undisturbed))[:1], list(digests(undisturbed))[:2])
    run(tiny(), folder, resume=True)
    assert digests(folder) == digests(undisturbed)
    assert (process.returncode, out, err) == (1, "", f"{HINT}\n")


@pytest.mark.slow
def test_a_run_that_is_killed_again_and_again_ends_with_the_same_bits(
    tmp_path: Path, undisturbed: Path
):
    folder = tmp_path / "run"
    for count in (1, 5):
        with started("run", TINY, "--out", folder, "--quiet", "--resume") as process:
            before = len(events(folder))
            wait_for(folder, lambda told, n=before + 5 + count: len(told) >= n)
            kill(process)
        assert not any(isinstance(event, RunFinished) for event in events(folder))
    run(tiny(), folder, resume=True)
    assert digests(folder) == digests(undisturbed)
    assert rows(folder / "scores.csv") == rows(undisturbed / "scores.csv")


@pytest.mark.full
@pytest.mark.slow
@pytest.mark.parametrize("moment", ["half written", "renamed"])
def test_a_run_that_is_killed_in_the_midst_of_any_write_ends_with_the_same_bits(
    moment: Moment, tmp_path: Path
):
    """The attempt of number n is killed at its n-th write, until one comes to its end."""
    study = tiny(sites=1)
    run(study, tmp_path / "whole")
    folder, attempts = tmp_path / "run", 1
    while killed(study, folder, moment, attempts):
        attempts += 1
    assert attempts > 7
    assert digests(folder) == digests(tmp_path / "whole")
    assert rows(folder / "scores.csv") == rows(tmp_path / "whole/scores.csv")


@pytest.mark.slow
def test_a_line_that_a_kill_left_unfinished_is_cut(tmp_path: Path):
    study = tiny(sites=1)
    run(study, tmp_path / "whole")
    run(study, tmp_path / "run")
    journal = tmp_path / "run/journal.jsonl"
    journal.write_bytes(journal.read_bytes()[:-40])
    (tmp_path / "run/scores.csv").unlink()
    run(study, tmp_path / "run", resume=True)
    assert digests(tmp_path / "run") == digests(tmp_path / "whole")
    assert isinstance(events(tmp_path / "run")[-1], RunFinished)


def test_two_runs_do_not_share_a_folder(tmp_path: Path):
    busy = pytest.raises(BadFolder, match="another process is running in it")
    with lock_folder(tmp_path, tiny(), resume=False), busy:
        run(tiny(), tmp_path, resume=True)
    assert not (tmp_path / "journal.jsonl").exists()


def small_files() -> None:
    """Let no file grow beyond 200 kB: what a disk does that is full."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))


@pytest.mark.slow
def test_a_full_disk_stops_the_run_with_one_sentence_and_it_can_go_on(
    tmp_path: Path, undisturbed: Path
):
    folder = tmp_path / "run"
    done = program("run", TINY, "--out", folder, "--quiet", limit=small_files)
    told = events(folder)
    assert isinstance(told[-1], Failed)
    assert (told[-1].site, told[-1].round, told[-1].error) == ("alder", 1, "DiskFailed")
    assert not list(folder.rglob("*.tmp"))
    run(tiny(), folder, resume=True)
    assert digests(folder) == digests(undisturbed)
    path = folder / "sites/alder/state/round-000001.safetensors"
    assert done == Done(
        1,
        "",
        f"grandrounds: site 'alder' failed in round 1 (train): DiskFailed: cannot write {path}: "
        "File too large; what was saved before is intact. Free some space or correct the folder, "
        "then continue with --resume. The rounds before this one are safe.\n",
    )


@pytest.mark.slow
def test_a_disk_that_fills_up_between_two_rounds_costs_nothing_that_was_saved(
    tmp_path: Path, undisturbed: Path, monkeypatch: pytest.MonkeyPatch
):
    """The first write of round 2 at the coordinator fails, as a real disk's does."""
    folder = tmp_path / "run"
    with pytest.raises(KeyboardInterrupt):
        run(tiny(), folder, listeners=[stop_in_round_2])
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, hard))
    try:
        with pytest.raises(Exception, match="site 'alder' failed in round 2"):
            run(tiny(), folder, resume=True)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert list(digests(folder)) == list(digests(undisturbed))[:1]
    run(tiny(), folder, resume=True)
    assert digests(folder) == digests(undisturbed)


def stop_in_round_2(event: object) -> None:
    if isinstance(event, SiteTrained) and event.round == 2:
        raise KeyboardInterrupt


@pytest.mark.slow
def test_a_run_whose_numbers_explode_stops_with_a_failure_card(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    folder = tmp_path / "run"
    words = ("run", TINY, "--out", folder, "--quiet", "--set", "training.learning_rate=1e30")
    done = inside(monkeypatch, capsys, *words)
    assert (done.code, done.out) == (1, "")
    assert done.err.count("\n") == 1
    assert done.err.startswith("grandrounds: site 'alder' failed in round 1 (train): Floating")
    assert done.err.endswith("Lower training.learning_rate, or run in fp32 (training.precision).\n")
    assert isinstance(events(folder)[-1], Failed)
    assert rows(folder / "digests.csv") == []


@pytest.mark.slow
def test_the_model_of_the_best_round_is_tested_even_where_the_last_is_worse(tmp_path: Path):
    study = replace(tiny("rounds=4", "training.learning_rate=0.05", sites=1))
    best, last = with_test(study, "best"), with_test(study, "last")
    run(best, tmp_path / "best")
    run(last, tmp_path / "last")
    scores = {e.round: e.score for e in events(tmp_path / "best") if isinstance(e, RoundFinished)}
    assert read_best(tmp_path / "best") == max(scores, key=lambda r: scores[r] or 0.0)
    assert read_best(tmp_path / "last") == 4
    assert {row["round"] for row in rows(tmp_path / "best/scores.csv")} == {
        str(read_best(tmp_path / "best"))
    }


def with_test(study: Study, which: str) -> Study:
    return replace(study, stop=replace(study.stop, test=which))  # pyright: ignore[reportArgumentType]


@pytest.mark.slow
def test_where_nobody_validates_the_last_round_is_the_best(tmp_path: Path):
    study = tiny("rounds=2", sites=1)
    [spec] = study.site
    alone = replace(study, site=(replace(spec, patients=replace(spec.patients, validation=0)),))
    state = run(alone, tmp_path / "run")
    finished_rounds = [e for e in events(tmp_path / "run") if isinstance(e, RoundFinished)]
    assert [(e.score, e.best_round) for e in finished_rounds] == [(None, 1), (None, 2)]
    assert state.best_round == read_best(tmp_path / "run") == 2


@pytest.mark.slow
def test_rounds_between_validations_have_no_score_and_the_last_always_has(tmp_path: Path):
    run(tiny("rounds=3", "stop.validate_every=2", sites=1), tmp_path / "run")
    scored = {e.round: e.score for e in events(tmp_path / "run") if isinstance(e, RoundFinished)}
    assert scored[1] is None
    assert scored[2] is not None
    assert scored[3] is not None
