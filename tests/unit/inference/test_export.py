"""A trained model as a file: it predicts what the run's own model does, or it is not written."""

import csv
import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from torch import Tensor

from grandrounds.core.errors import BadFolder, BadInput, BadSite, BadStudy, RunFailed
from grandrounds.inference.export import FORMATS, Format, export_program, write_torchscript
from grandrounds.inference.monai_bundle import INTENDED_USE, export_bundle
from grandrounds.inference.predictor import Predictor, predictor_for
from grandrounds.inference.trained_model import TrainedModel, load_trained_model
from grandrounds.runs.loop import run_study as run
from grandrounds.runs.site_data import open_sites
from grandrounds.study.file import parse_study, read_study, read_table
from grandrounds.study.study import Study
from grandrounds.tasks.task import Examples
from tests.helpers.federation import TINY, tiny
from tests.helpers.grids import with_representatives
from tests.helpers.task_studies import KINDS, tiny_of

LABELS = {
    "synthesis": "T2w->PDw",
    "segmentation": "T1w->csf+grey+white",
    "classification": "FLAIR->lesion",
}
Runs = Callable[[str], Path]

WITHOUT_GRANDROUNDS = """
import runpy, sys
sys.modules["grandrounds"] = None
sys.argv[0] = "monai.bundle"
runpy.run_module("monai.bundle", run_name="__main__")
"""


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    """Finished runs of one round, one for each kind of task."""
    folder = tmp_path_factory.mktemp("runs")

    def finished(kind: str) -> Path:
        path = folder / kind
        if not path.exists():
            run(tiny_of(kind, "rounds=1", sites=2), path)
        return path

    return finished


def untrained(study: Study, site: str = "alder") -> TrainedModel:
    """A model with its first weights, which exports as any other does."""
    task = study.make_task()
    return TrainedModel(study, task, site, 0, task.build(study.seed).eval())


def own_cases(inference: Predictor) -> tuple[Tensor, Tensor]:
    """A site's test slices of a task as they enter a file, and what its task predicts of them."""
    trained, label = inference.trained, inference.labels[0]
    cohorts = open_sites(trained.study, ())[trained.site].cohorts
    examples = trained.task.evaluation_examples(cohorts, "test")
    chosen = [i for i in range(len(examples)) if examples.case(i).task == label]
    batch = examples.batch(chosen[: trained.task.cases_at_once], None)
    source = batch["source"]
    images = (source + 1) / 2 if trained.study.task.kind == "synthesis" else source
    with torch.no_grad():
        return images, trained.task.predict(trained.model, batch)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("form", FORMATS)
def test_a_file_predicts_what_the_task_predicts(form: str, kind: str, runs: Runs, tmp_path: Path):
    inference = predictor_for(load_trained_model(runs(kind), "alder"), LABELS[kind])
    out = tmp_path / f"model{FORMATS[form].suffix}"
    assert export_program(inference, form, out) < 1e-4
    images, expected = own_cases(inference)
    predict = FORMATS[form].load(out)
    with torch.no_grad():
        assert (predict(images) - expected).abs().max() < 1e-4
        assert (predict(images[:1]) - expected[:1]).abs().max() < 1e-4
    assert expected.std() > 1e-3  # two blank predictions agree, too


GENERATORS = {
    "plain": ('method.kind="fedavg"',),
    "U-Net": ('method.kind="fedavg"', 'task.generator="unet"', "task.unet_levels=2"),
    "a channel for each contrast": (
        'method.kind="fedavg"',
        'task.generator="contrasts-unet"',
        "task.unet_levels=2",
    ),
    "driven by a code": (
        'method.kind="fedavg"',
        'task.generator="coded-unet"',
        "task.unet_levels=2",
    ),
    "batch norm": ('task.norm="batch"',),
    "reflected edges": ('task.padding="reflect"',),
    "equalised": ("task.equalised=true",),
    "blocks in the branch": ('task.block_place="branch"',),
}


@pytest.mark.slow
@pytest.mark.parametrize("options", GENERATORS.values(), ids=GENERATORS)
def test_every_generator_can_be_exported(options: Sequence[str], tmp_path: Path):
    inference = predictor_for(untrained(tiny(*options, sites=2)), "T2w->PDw")
    assert export_program(inference, "torchscript", tmp_path / "model.ts") < 1e-4
    images, expected = own_cases(inference)
    assert (inference.network(images) - expected).abs().max() < 1e-4


@pytest.mark.slow
def test_of_two_directions_the_one_that_is_asked_for_is_exported(tmp_path: Path):
    table = read_table(TINY)
    table["site"] = [{**site, "tasks": ["T1w->T2w", "T2w->T1w"]} for site in table["site"][:2]]
    table["method"] = {"kind": "fedmedgan"}
    table["task"] |= {"generator": "unet", "pairing": "unpaired", "unet_levels": 2}
    trained = untrained(parse_study(table))
    for label in ("T1w->T2w", "T2w->T1w"):
        inference = predictor_for(trained, label)
        images, expected = own_cases(inference)
        assert torch.allclose(inference.network(images), expected, atol=1e-5)


def test_a_file_holds_no_critic(tmp_path: Path):
    names = predictor_for(untrained(tiny(sites=2)), "T1w->T2w").network.state_dict()
    assert names
    assert not [name for name in names if "critic" in name]


def test_a_contrast_that_only_other_sites_have_is_no_input():
    table = read_table(TINY)
    table |= {"method": {"kind": "fedavg"}, "task": {"kind": "segmentation", "channels": [4, 8]}}
    first, second = table["site"][:2]
    table["site"] = [
        {**first, "tasks": ["FLAIR->csf"]},
        {**second, "tasks": ["T1w+FLAIR->csf+white"]},
    ]
    inference = predictor_for(untrained(parse_study(table)))
    assert (inference.contrasts, inference.outputs) == (("FLAIR",), ("csf", "white"))
    cohorts = open_sites(inference.trained.study, ())["alder"].cohorts
    batch = inference.trained.task.evaluation_examples(cohorts, "test").batch([0], None)
    assert not batch["source"][:, 0].any()
    found = inference.network(batch["source"][:, 1:])
    assert torch.allclose(found, inference.trained.task.predict(inference.trained.model, batch))


ARMS = {
    "private parts": (),
    "blocks in the branch": ('task.block_place="branch"',),
    "the merged model at the sites": ('topology.kind="swarm"',),
    "personal models": ('method.kind="ditto"',),
    "fine-tuned models": ('method.kind="fedavg"', "training.fine_tune=1"),
    "no federation": ('method.kind="local"',),
    "pooled data": ('method.kind="central"',),
    "private batch norms": ('method.kind="fedbn"',),
    "a network that was split": (
        'method.kind="fedavg"',
        'topology.kind="split"',
        'topology.cut="bottleneck_late.0"',
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("options", ARMS.values(), ids=ARMS)
def test_the_loaded_model_scores_as_the_run_s_did(options: Sequence[str], tmp_path: Path):
    study = tiny("rounds=1", *options, sites=2)
    run(study, tmp_path / "run")
    told = scores_of(tmp_path / "run" / "scores.csv")
    for site in ("alder", "birch"):
        trained = load_trained_model(tmp_path / "run", site)
        examples = trained.task.evaluation_examples(open_sites(study, ())[site].cohorts, "test")
        for index in (0, len(examples) - 1):
            assert psnr_of(trained, examples, index) == pytest.approx(
                told[key_of(examples, index)], abs=1e-3
            )


def scores_of(path: Path) -> dict[tuple[str, ...], float]:
    with path.open(newline="") as file:
        return {
            (row["site"], row["patient"], row["case"], row["task"]): float(row["value"])
            for row in csv.DictReader(file)
            if row["metric"] == "psnr"
        }


def key_of(examples: Examples, index: int) -> tuple[str, ...]:
    case = examples.case(index)
    return case.site, case.patient, case.case, case.task


def psnr_of(trained: TrainedModel, examples: Examples, index: int) -> float:
    batch = examples.batch([index], None)
    with torch.no_grad():
        prediction = trained.task.predict(trained.model, batch)
    return float(trained.task.score(prediction, batch)["psnr"])


@pytest.mark.slow
def test_a_file_that_predicts_otherwise_is_not_left(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    odd = Format(".ts", write_torchscript, lambda path: lambda images: images + 2e-4)
    monkeypatch.setitem(FORMATS, "torchscript", odd)  # pyright: ignore[reportArgumentType]
    inference = predictor_for(untrained(tiny(sites=2)), "T1w->T2w")
    with pytest.raises(RunFailed, match="more than 1e-04; nothing was written"):
        export_program(inference, "torchscript", tmp_path / "model.ts")
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_a_bundle_of_a_file_that_predicts_otherwise_is_not_left(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    odd = Format(".ts", write_torchscript, lambda path: lambda images: images * torch.nan)
    monkeypatch.setitem(FORMATS, "torchscript", odd)  # pyright: ignore[reportArgumentType]
    inference = predictor_for(untrained(tiny(sites=2)), "T1w->T2w")
    with pytest.raises(RunFailed, match="nothing was written"):
        export_bundle(inference, tmp_path / "bundle")
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
@pytest.mark.parametrize("kind", with_representatives(KINDS, KINDS[:1]))
def test_monai_runs_a_bundle_where_there_is_no_grandrounds(kind: str, runs: Runs, tmp_path: Path):
    inference = predictor_for(load_trained_model(runs(kind), "alder"), LABELS[kind])
    export_bundle(inference, tmp_path / "bundle")
    images, expected = own_cases(inference)
    slices = tmp_path / "slices"
    slices.mkdir()
    np.save(slices / "a.npy", images[0, 0].numpy())
    nib.save(nib.Nifti1Image(images[1, 0].numpy(), np.eye(4)), slices / "b.nii.gz")
    run_by_monai(tmp_path / "bundle", slices)
    for index, found in enumerate(predictions_in(tmp_path / "bundle" / "predictions", kind)):
        assert found.shape == tuple(expected[index].shape)
        assert np.abs(found - expected[index].numpy()).max() < 1e-4


def run_by_monai(bundle: Path, slices: Path) -> None:
    words = ["run", "--config_file", bundle / "configs" / "inference.json"]
    words += ["--bundle_root", bundle, "--dataset_dir", slices]
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_GRANDROUNDS, *words],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def predictions_in(folder: Path, kind: str) -> list[np.ndarray]:
    if kind == "classification":
        lines = (folder / "predictions.csv").read_text().splitlines()
        return [np.array([float(line.split(",")[1])]) for line in lines]
    volumes = [np.asanyarray(nib.load(folder / f"{n}_pred.nii.gz").dataobj) for n in ("a", "b")]  # pyright: ignore[reportAttributeAccessIssue]
    if kind == "synthesis":
        return [volume[None] for volume in volumes]
    return [np.moveaxis(volume[:, :, 0], -1, 0) for volume in volumes]


def required(properties: dict[str, dict[str, object]]) -> set[str]:
    return {str(each["id"]) for each in properties.values() if each["required"]}


@pytest.mark.slow
def test_a_bundle_has_all_that_monai_asks_of_one(tmp_path: Path):
    from monai.bundle.properties import InferProperties, MetaProperties  # seconds

    inference = predictor_for(untrained(tiny(sites=2)), "T1w->T2w")
    bundle = tmp_path / "bundle"
    export_bundle(inference, bundle)
    runs = json.loads((bundle / "configs" / "inference.json").read_text())
    assert required(InferProperties) <= set(runs)
    assert {"preprocessing", "postprocessing", "run"} <= set(runs)
    facts = json.loads((bundle / "configs" / "metadata.json").read_text())
    assert {name.removeprefix("_meta_::") for name in required(MetaProperties)} <= set(facts)
    assert {"schema", "changelog", "required_packages_version", "task"} <= set(facts)
    assert {"description", "authors", "copyright", "network_data_format"} <= set(facts)
    assert facts["intended_use"] == INTENDED_USE
    image = facts["network_data_format"]["inputs"]["image"]
    pred = facts["network_data_format"]["outputs"]["pred"]
    assert (image["num_channels"], image["spatial_shape"]) == (1, [32, 32])
    assert (image["channel_def"], pred["channel_def"]) == ({"0": "T1w"}, {"0": "T2w"})
    assert "T1w image (rows, columns)" in (bundle / "docs" / "README.md").read_text()


def test_a_network_that_reads_no_code_needs_no_task():
    trained = untrained(tiny('method.kind="fedavg"', sites=2))
    inference = predictor_for(trained)
    assert (inference.contrasts, inference.outputs) == (("T1w/T2w",), ("T2w/PDw",))


def heart() -> Study:
    return read_study(TINY.parent / "heart.toml")


def deep() -> Study:
    return tiny_of("segmentation", "task.dims=3", "task.patch=[4, 16, 16]", sites=2)


REFUSED: dict[str, tuple[Callable[[], Predictor], type[BadInput], str]] = {
    "a task must be chosen": (
        lambda: predictor_for(untrained(tiny(sites=2))),
        BadInput,
        "site 'alder' has the tasks T1w->T2w, T2w->PDw, and its model must be told which; "
        "choose one with --task",
    ),
    "another site's task": (
        lambda: predictor_for(untrained(tiny(sites=2)), "FLAIR->T2w"),
        BadSite,
        "site 'alder' never trained the task 'FLAIR->T2w'; it trained T1w->T2w, T2w->PDw",
    ),
    "a table": (
        lambda: predictor_for(untrained(heart(), "va")),
        BadStudy,
        "study 'heart': a table's variables are on a scale of the site's own data, not kept in "
        "the run; export is for slices",
    ),
    "volumes": (
        lambda: predictor_for(untrained(deep())),
        BadStudy,
        "study 'tiny': a network of 3-D patches slides over volumes, which no exported file does; "
        "export is for slices",
    ),
}


@pytest.mark.parametrize(("ask", "kind", "sentence"), REFUSED.values(), ids=REFUSED)
def test_what_cannot_be_exported_is_said_in_a_sentence(
    ask: Callable[[], Predictor], kind: type[BadInput], sentence: str
):
    with pytest.raises(BadInput) as told:
        ask()
    assert (type(told.value), str(told.value)) == (kind, sentence)


def test_a_name_that_is_taken_or_wrong_is_refused(tmp_path: Path):
    inference = predictor_for(untrained(tiny(sites=2)), "T1w->T2w")
    taken = tmp_path / "model.ts"
    taken.write_text("mine")
    with pytest.raises(BadInput, match=r"model\.ts: is there already; choose another name"):
        export_program(inference, "torchscript", taken)
    with pytest.raises(BadInput, match=r"must be named \*\.onnx"):
        export_program(inference, "onnx", tmp_path / "model.ts")
    with pytest.raises(BadInput, match=r"there is no folder .*nowhere that can be written to"):
        export_program(inference, "torchscript", tmp_path / "nowhere" / "model.ts")
    assert taken.read_text() == "mine"


@pytest.mark.slow
def test_a_folder_without_a_whole_model_is_refused(runs: Runs, tmp_path: Path):
    folder = tmp_path / "run"
    run(tiny("rounds=1", sites=2), folder)
    (folder / "model" / "shared.safetensors").unlink()
    with pytest.raises(BadFolder, match="tensors of the model of site 'alder' are missing, first"):
        load_trained_model(folder, "alder")
    (folder / "sites" / "alder" / "private.safetensors").unlink()
    with pytest.raises(BadFolder, match=r"private\.safetensors: not a readable safetensors file"):
        load_trained_model(folder, "alder")
    (folder / "scores.csv").unlink()
    with pytest.raises(BadFolder, match="its run is not finished"):
        load_trained_model(folder, "alder")
    with pytest.raises(BadFolder, match=r"no study\.toml"):
        load_trained_model(tmp_path, "alder")
    with pytest.raises(BadSite, match="no site 'cedar' trained; those that did are alder, birch"):
        load_trained_model(runs("synthesis"), "cedar")


def test_a_comparison_s_folder_names_its_runs(tmp_path: Path):
    (tmp_path / "arms.toml").touch()
    (tmp_path / "arms" / "fedavg" / "seed-1").mkdir(parents=True)
    with pytest.raises(BadFolder, match=r"give one of its runs, such as .*arms/fedavg/seed-1"):
        load_trained_model(tmp_path, "alder")


@pytest.mark.slow
def test_a_model_whose_predictions_are_drawn_is_refused(runs: Runs, tmp_path: Path):
    folder = tmp_path / "run"
    run(tiny("rounds=1", "task.dropout=0.5", "task.dropout_at_evaluation=true", sites=2), folder)
    with pytest.raises(BadStudy, match="make each prediction a random draw"):
        load_trained_model(folder, "alder")


@pytest.mark.slow
def test_a_model_tested_with_statistics_that_no_export_has_is_refused(tmp_path: Path):
    options = ("task.norm=batch", "task.statistics_at_evaluation=image")
    run(tiny("rounds=1", *options, sites=2), tmp_path / "run")
    with pytest.raises(BadStudy, match="an exported model has no such mode"):
        load_trained_model(tmp_path / "run", "alder")


def test_a_format_without_its_packages_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    form = replace(FORMATS["onnx"], needs=("onnx", "no_such_package"))
    monkeypatch.setitem(FORMATS, "onnx", form)  # pyright: ignore[reportArgumentType]
    inference = predictor_for(untrained(tiny(sites=2)), "T1w->T2w")
    with pytest.raises(BadInput, match=r"needs no_such_package; .* install .*\[export\]"):
        export_program(inference, "onnx", tmp_path / "model.onnx")
