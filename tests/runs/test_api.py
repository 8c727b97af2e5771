"""What a run and a comparison from Python come to: the numbers of the command line."""

import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pandas
import pytest
import torch

import grandrounds as gr
from grandrounds.algorithms.methods.mrmtl import MRMTL
from grandrounds.core.errors import BadFolder, BadInput, BadSite, BadStudy
from grandrounds.core.events import Event, RoundFinished, RunStarted
from grandrounds.report.analysis.facts import read_facts
from grandrounds.runs.loop import run_study
from tests.helpers.command import inside
from tests.helpers.federation import TINY, tiny
from tests.helpers.task_studies import tiny_of


@dataclass(frozen=True)
class Mine(gr.Method):
    """FedProx, written again."""

    mu: float = 0.5

    def train(self, site: gr.LocalRound) -> gr.Update:
        return site.train(gr.Pull(self.mu, towards=site.start))


def run(folder: Path, **changes: object) -> gr.FinishedRun:
    return gr.run(gr.load("tiny", **{"rounds": 2, **changes}), folder, progress=False)


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> gr.FinishedRun:
    """A run of two rounds."""
    return run(tmp_path_factory.mktemp("done") / "run")


def test_a_run_has_the_digests_of_the_command(
    done: gr.FinishedRun,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    words = ("run", TINY, "--rounds", "2", "--out", tmp_path / "run", "--quiet")
    assert inside(monkeypatch, capsys, *words).code == 0
    assert gr.FinishedRun(str(tmp_path / "run")).digests == done.digests
    assert len(done.digests) == 2


def test_scores_and_rounds_are_tables_of_pandas(done: gr.FinishedRun):
    scores = pandas.DataFrame(done.scores)
    assert set(scores["site"]) == set(done.study.trainers)
    assert scores["value"].dtype == float
    assert set(scores["round"]) <= {1, 2}
    rounds = pandas.DataFrame(done.rounds)
    assert list(rounds["round"]) == [1] * 4 + [2] * 4
    assert all(rounds["took_part"])
    assert min(rounds["bytes_up"]) > 0
    assert rounds["validation"].dtype == float
    assert not any(rounds["validation"].isna())


def test_a_mean_is_that_of_the_report(done: gr.FinishedRun):
    [arm] = read_facts(done.folder).arms
    for metric in ("psnr", "ssim"):
        spread = arm.overall(metric)
        assert spread
        assert done.mean(metric) == spread.mean
    assert done.mean() == done.mean("psnr")
    with pytest.raises(BadInput) as refused:
        done.mean("dice")
    assert str(refused.value) == (
        f"{done.folder}: no score 'dice' of every site; it has psnr, ssim, nrmse, gabor"
    )


def test_a_notebook_shows_the_means_of_each_site(done: gr.FinishedRun):
    table = done._repr_html_()
    assert table.count("<tr>") == 1 + len(done.study.trainers) + 1
    assert f"<th>all</th><td>{done.mean():.4g}</td>" in table
    assert "<th>pFLSynth</th><th>psnr</th>" in table


def test_a_report_is_written_when_it_is_asked_for(tmp_path: Path):
    one = run(tmp_path / "run", rounds=1)
    assert not (tmp_path / "run" / "report.html").exists()
    assert one.report() == tmp_path / "run" / "report.html"
    assert one.report().read_text("utf-8").startswith("<!")


def test_a_model_predicts_images_and_batches(done: gr.FinishedRun):
    model = done.model("alder")
    assert isinstance(model, torch.nn.Module)
    assert not any(module.training for module in model.modules())
    assert isinstance(model.network, torch.nn.Module)
    images = torch.rand(2, 1, 32, 32, generator=torch.Generator().manual_seed(1))
    with pytest.raises(BadInput, match="choose one"):
        model.predict(images)
    [label, *_] = model.trained.labels
    made = model.predict(images, label)
    assert made.shape == (2, 1, 32, 32)
    assert not made.requires_grad
    examples = model.trained.task.blank((32, 32))
    assert model.predict(examples).shape == (1, 1, 32, 32)
    with pytest.raises(BadSite, match="no site 'nowhere' trained"):
        done.model("nowhere")


def test_a_model_is_called_as_any_module_is(tmp_path: Path):
    study = tiny_of("segmentation")
    done = gr.run(study, tmp_path / "run", progress=False)
    model = done.model(study.trainers[0])
    source = torch.rand(1, 1, *study.elements.size)
    assert model(source).shape[2:] == study.elements.size


def test_a_run_of_several_processes_has_the_same_digests(done: gr.FinishedRun, tmp_path: Path):
    again = gr.run(done.study, tmp_path / "run", workers=2, progress=False)
    assert again.digests == done.digests


def test_without_progress_nothing_is_printed_and_with_it_stderr_has_bars(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
):
    study = gr.load("tiny", method="fedbn", task={"norm": "instance"}, rounds=1)
    gr.run(study, tmp_path / "silent", progress=False)
    assert capfd.readouterr() == ("", "")
    gr.run(study, tmp_path / "told")
    out, err = capfd.readouterr()
    assert out == ""
    assert "note: fedbn keeps no layer at a site" in err
    assert "1/1 rounds" in err


def stop_after_one(event: Event) -> None:
    if isinstance(event, RoundFinished):
        raise KeyboardInterrupt


def test_ctrl_c_leaves_a_run_that_goes_on_to_the_same_digests(done: gr.FinishedRun, tmp_path: Path):
    with pytest.raises(KeyboardInterrupt) as stopped:
        gr.run(done.study, tmp_path / "run", progress=False, listeners=[stop_after_one])
    assert stopped.value.__notes__ == [
        "stopped; every finished round is saved. The same call with resume=True goes on."
    ]
    with pytest.raises(BadFolder, match="its run is not finished"):
        gr.FinishedRun(tmp_path / "run")
    heard: list[Event] = []
    again = gr.run(
        done.study, tmp_path / "run", resume=True, progress=False, listeners=[heard.append]
    )
    assert again.digests == done.digests
    assert isinstance(heard[0], RunStarted)


def test_a_study_is_checked_before_it_runs(tmp_path: Path):
    wrong = gr.load("tiny")
    object.__setattr__(wrong, "rounds", 0)
    with pytest.raises(BadStudy, match="rounds is 0"):
        gr.run(wrong, tmp_path / "run", progress=False)
    with pytest.raises(BadInput, match="workers is -1"):
        gr.run("tiny", tmp_path / "run", workers=-1, progress=False)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("workers", [1, 2])
def test_a_comparison_takes_words_classes_and_instances(tmp_path: Path, workers: int):
    methods = ["fedprox:mu=0.5", Mine, "local", MRMTL(strength=0.3), "ensemble"]
    study = gr.load("tiny", rounds=1)
    runs = gr.compare(study, methods, tmp_path, seeds=1, workers=workers, progress=False)
    own = f"{__name__}:Mine"
    assert list(runs) == ["fedprox:mu=0.5", own, "local", "mrmtl:strength=0.3", "ensemble"]
    assert runs[own][0].digests == runs["fedprox:mu=0.5"][0].digests
    assert runs["mrmtl:strength=0.3"][0].study.method.options == {"strength": 0.3}
    assert runs["ensemble"][0].mean() != runs["local"][0].mean()
    with pytest.raises(BadFolder, match="derived from other arms' models"):
        runs["ensemble"][0].model("alder")
    with pytest.raises(BadFolder, match="holds a comparison"):
        gr.FinishedRun(tmp_path)


def test_a_comparison_has_the_digests_of_the_command_and_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    arms, out = "pflsynth,fedavg", tmp_path / "command"
    words = ("compare", TINY, "--arms", arms, "--set", "rounds=1", "--out", out, "--quiet")
    assert inside(monkeypatch, capsys, *words, "--workers", "1").code == 0
    study, heard = gr.load("tiny", rounds=1), list[str]()
    runs = gr.compare(
        study,
        arms.split(","),
        tmp_path / "python",
        seeds=2,
        progress=False,
        listeners=[lambda run, event: heard.append(run.name)],
    )
    for arm in ("pflsynth", "fedavg"):
        assert [each.study.seed for each in runs[arm]] == [1, 2]
        there = gr.FinishedRun(out / "arms" / arm / "seed-1")
        assert runs[arm][0].digests == there.digests
        assert runs[arm][0].scores == there.scores
    assert set(heard) == {f"arms/{a}/seed-{s}" for a in runs for s in (1, 2)}
    heard.clear()
    again = gr.compare(study, arms.split(","), tmp_path / "python", seeds=2, progress=False)
    assert again == runs
    assert heard == []


def test_wrong_arms_are_refused_as_by_the_command(tmp_path: Path):
    with pytest.raises(BadStudy, match="did you mean 'fedprox'"):
        gr.compare("tiny", ["fedproxx"], tmp_path / "a")
    with pytest.raises(BadInput, match="seeds is 0"):
        gr.compare("tiny", ["fedavg"], tmp_path / "a", seeds=0)
    with pytest.raises(BadStudy, match=r"arm 'fedavg:training.epochs=2' differs"):
        gr.compare("tiny", ["local", "fedavg:training.epochs=2"], tmp_path / "a")
    assert not (tmp_path / "a").exists()


def test_data_of_a_simulated_site_are_refused(tmp_path: Path):
    with pytest.raises(BadSite, match="site 'alder' is simulated in this study"):
        gr.run("tiny", tmp_path / "run", data={"alder": tmp_path}, progress=False)


CELLS = """
import sys
from dataclasses import dataclass
import grandrounds as gr

@dataclass(frozen=True)
class ByHand(gr.Method):
    "By hand."

study = gr.load("tiny", rounds=1, method=ByHand)
try:
    gr.run(study, "two", workers=2)
except gr.core.errors.BadStudy as refused:
    print(refused)
print(gr.run(study, "one", progress=False).digests)
runs = gr.compare(study, [ByHand, "fedavg"], "compared", progress=False)
print([run.digests for of_method in runs.values() for run in of_method])
"""


@pytest.mark.full
def test_a_class_of_a_cell_trains_in_a_process_without_a_file(tmp_path: Path):
    """As in a notebook: the main module has no file, and nothing can import the class."""
    done = subprocess.run(
        [sys.executable, "-c", CELLS], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    refused, alone, compared = done.stdout.splitlines()
    assert refused.startswith('workers = 2 are processes that must import "__main__:ByHand"')
    run_study(tiny("rounds=1", "method.kind=fedavg"), tmp_path / "fedavg")
    [digest] = gr.FinishedRun(tmp_path / "fedavg").digests
    assert alone == f"['{digest}']"
    assert compared == f"[['{digest}'], ['{digest}']]"
