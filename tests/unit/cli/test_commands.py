"""What the commands print, called in this process."""

import csv
import json
from pathlib import Path

import pytest

from grandrounds.core.events import Failed
from grandrounds.core.journal import read_journal
from grandrounds.core.messages import Request, Train
from grandrounds.report.analysis.facts import read_facts
from grandrounds.site.site import Promise, Site
from grandrounds.study.file import example
from tests.helpers.command import inside
from tests.helpers.federation import fail_when

TINY = example("tiny")


@pytest.mark.slow
def test_check_prints_the_study_and_what_it_costs(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    said = inside(monkeypatch, capsys, "check", TINY).out
    for words in ("Tensor policy", "bottleneck_late", "a round:", "memory: about", "SHA-256"):
        assert words in said


@pytest.mark.slow
def test_check_says_what_a_method_moves_beside_the_model(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    words = ("check", TINY, "--set", 'method={kind="scaffold"}')
    said = inside(monkeypatch, capsys, *words).out
    assert "beside the model it sends: control\n" in said
    assert "beside the model it is sent: control\n" in said
    told = json.loads(inside(monkeypatch, capsys, *words, "--json").out)
    assert told["beside_the_model"] == {"sends": ["control"], "receives": ["control"]}


@pytest.mark.slow
def test_check_says_what_may_surprise(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    words = ("--set", 'method={kind="fedbn"}', "--set", "task.norm=instance", "--json")
    facts = json.loads(inside(monkeypatch, capsys, "check", TINY, *words).out)
    assert facts["notes"] == ["fedbn keeps no layer at a site: the network has no batch norm"]
    assert facts["memory"] > 0
    assert facts["bytes_per_run"] == facts["bytes_per_round"] * facts["study"]["rounds"]


@pytest.mark.slow
def test_check_counts_what_a_real_site_has_and_names_nobody(
    real_data: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    site = tmp_path / "site.toml"
    site.write_text(f'name = "ljubljana-15t"\ndata = "{real_data}/mri/site-lju15t"\n')
    said = inside(monkeypatch, capsys, "check", example("real"), "--site", site).out
    assert "2 of 7 sessions lack T2w" in said
    assert "sub-" not in said
    assert str(real_data) not in said


def test_a_site_file_of_another_study_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    site = tmp_path / "site.toml"
    site.write_text('name = "elsewhere"\ndata = "."\n')
    done = inside(monkeypatch, capsys, "check", example("real"), "--site", site)
    assert done.code == 2
    assert "no real site named 'elsewhere'" in done.err


@pytest.mark.slow
def test_a_run_prints_its_scores(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    overrides = ("--rounds", "1", "--set", "task.norm=instance", "--set", 'method={kind="fedbn"}')
    said = inside(monkeypatch, capsys, "run", TINY, "--out", tmp_path / "run", *overrides)
    assert "Test PSNR in dB" in said.out
    assert "report.html" in said.out
    assert "note: fedbn keeps no layer at a site" in said.err


@pytest.mark.slow
def test_the_report_the_table_and_the_check_count_the_same_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    words = (TINY, "--set", "rounds=2", "--quiet")
    inside(monkeypatch, capsys, "run", *words, "--out", tmp_path / "run")
    checked = inside(monkeypatch, capsys, "check", *words, "--json").out
    promised = json.loads(checked)["bytes_per_run"]
    with (tmp_path / "run" / "rounds.csv").open() as file:
        rows = list(csv.DictReader(file))
    [arm] = read_facts(tmp_path / "run").arms
    assert sum(int(row["bytes_up"]) + int(row["bytes_down"]) for row in rows) == promised
    assert sum(work.bytes_up + work.bytes_down for work in arm.runs[0].work) == promised


@pytest.mark.slow
def test_a_failure_is_one_sentence_on_stderr_and_its_trace_is_in_the_journal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    """Site, round, stage, class and hint; exit code 1, and no JSON of a run that has no result."""
    begin = Site.begin

    def short(site: Site, request: Request) -> Promise:
        if site.name == "birch" and isinstance(request, Train):
            raise MemoryError("no room")
        return begin(site, request)

    monkeypatch.setattr(Site, "begin", short)
    done = inside(monkeypatch, capsys, "run", TINY, "--out", tmp_path / "run", "--json", "--quiet")
    assert (done.code, done.out) == (1, "")
    assert done.err == (
        "grandrounds: site 'birch' failed in round 1 (train): MemoryError: no room. "
        "Lower training.batch_size or the size of the network.\n"
    )
    _, last = read_journal(tmp_path / "run" / "journal.jsonl")[-1]
    assert isinstance(last, Failed)
    assert last.trace[-1].startswith("test_commands.py:")


@pytest.mark.slow
def test_an_absence_is_told_on_stderr_and_the_result_still_comes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    fail_when(monkeypatch, lambda name, r: name == "birch" and isinstance(r, Train))
    words = ("--rounds", "1", "--set", "topology.require=3", "--json")
    done = inside(monkeypatch, capsys, "run", TINY, "--out", tmp_path / "run", *words)
    assert done.code == 0
    assert "without an answer: site 'birch' failed in round 1 (train): ValueError: out" in done.err
    assert list(json.loads(done.out)["arms"]) == ["pflsynth"]


@pytest.mark.parametrize(
    "words",
    [("run",), ("compare", "--arms", "fedavg,local"), ("sweep", "--over", "training.epochs=1,2")],
)
def test_a_device_that_is_not_here_is_refused_before_anything_is_written(
    words: tuple[str, ...],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    command, *options = words
    given = (*options, "--devices", "cuda:98,cuda:99", "--out", tmp_path / "out")
    done = inside(monkeypatch, capsys, command, TINY, *given)
    assert done.code == 2
    assert done.err == (
        "grandrounds: This machine has no device 'cuda:98'; say auto, or cpu, which is always "
        "there.\n"
    )
    assert not (tmp_path / "out").exists()
