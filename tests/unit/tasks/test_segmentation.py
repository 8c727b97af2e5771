"""Segmentation: labels, channels, what is asked of a site, its loss, its scores, a whole run."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Generator, Tensor
from torch.nn import functional

from grandrounds.algorithms.sharing import UNIONS
from grandrounds.core.errors import BadStudy
from grandrounds.core.messages import CaseScore
from grandrounds.core.soundness import spoil_memory
from grandrounds.core.weights import select
from grandrounds.data.cohort import Cohort, Session
from grandrounds.data.elements import Elements
from grandrounds.runs.loop import run_study as run
from grandrounds.study.file import read_study
from grandrounds.tasks import Segmentation
from grandrounds.tasks.segmentation import (
    SegmentationLabel,
    SegmentationTask,
    as_slices,
    cross_entropy,
    dice_loss,
)
from grandrounds.tasks.task import Batch
from tests.helpers.command import inside
from tests.helpers.federation import assert_trained, built, digests, played, rows

CONTRASTS = ("T1w", "T2w", "FLAIR")
ELEMENTS = Elements(CONTRASTS, (16, 16), (3.0, 4.0))
SITES = {"alder": ("T1w->csf+white",), "birch": ("FLAIR+T1w->lesion", "T1w->white")}
TISSUES, LESION = (
    SegmentationLabel.parse("T1w->csf+white"),
    SegmentationLabel.parse("FLAIR+T1w->lesion"),
)


def task_of(**options: object) -> SegmentationTask:
    small: dict[str, object] = {"channels": (4, 6), "patch": (4, 8, 8), **options}
    return Segmentation(**small).bind(ELEMENTS, SITES)  # pyright: ignore[reportArgumentType]


def session(patient: str, slices: int = 3, masks: tuple[str, ...] = ("csf", "white", "lesion")):
    """Pixels that say which slice and contrast they are of; masks whose left half is drawn."""
    draw = np.random.default_rng(len(patient))
    images = np.empty((slices, 3, 16, 16), np.float32)
    images[:] = 0.1 * np.arange(1, slices + 1)[:, None, None, None]
    images += 0.25 * np.arange(3)[:, None, None]
    made = {name: np.zeros((slices, 16, 16), np.uint8) for name in masks}
    for mask in made.values():
        mask[:, :, :8] = draw.random((slices, 16, 8)) > 0.5
    return Session(patient, "", CONTRASTS, images, made)


def cohort(site: str = "birch", slices: int = 3, **change: Session) -> Cohort:
    train = (session("sub-smith", slices), session("sub-jo", slices, ("white",)))
    return Cohort(site, {"train": train, "validation": (), "test": (session("sub-brown", slices),)})


def drawn(seed: int = 0) -> Generator:
    return Generator().manual_seed(seed)


def test_channels_are_the_union_in_the_order_of_the_elements_and_of_the_roster():
    channels = task_of().channels
    assert channels.contrasts == ("T1w", "FLAIR")
    assert channels.structures == ("csf", "white", "lesion")
    assert LESION.label == "FLAIR+T1w->lesion"


def test_a_contrast_that_a_label_does_not_use_is_zero_and_so_is_what_it_does_not_ask_for():
    found = task_of().channels.batch(session("sub-smith"), slice(1, 3), TISSUES)
    assert found["source"].shape == (2, 2, 16, 16)
    np.testing.assert_allclose(found["source"][:, 0, 0, 0], [0.2, 0.3], atol=1e-6)
    assert (found["source"][:, 1] == 0).all()
    assert (found["target"][:, 2] == 0).all()
    assert found["target"][:, :2].sum() > 0
    assert found["asked"].tolist() == [[1, 1, 0], [1, 1, 0]]


def test_training_draws_one_of_the_labels_that_a_session_can_serve():
    examples = task_of(flip=0.0).training_examples([cohort()])
    assert len(examples) == 6
    seen = {
        tuple(examples.batch([index], drawn(seed))["asked"][0].tolist())
        for index in (0, 3)
        for seed in range(20)
    }
    assert seen == {(0, 0, 1), (0, 1, 0)}
    without_lesions = [examples.batch([3], drawn(seed))["asked"][0, 2] for seed in range(20)]
    assert max(without_lesions) == 0


def test_evaluation_gives_each_session_with_each_label_whole():
    examples = task_of().evaluation_examples([cohort()], "train")
    labels = [examples.case(index).task for index in range(len(examples))]
    assert labels == ["FLAIR+T1w->lesion", "T1w->white", "T1w->white"]
    assert examples.batch([0], None)["source"].shape == (3, 2, 16, 16)
    assert examples.case(0).case == "1"
    patients = [examples.case(index).patient for index in range(3)]
    assert patients[0] == patients[1] != patients[2]


def test_a_flip_turns_image_and_mask_alike():
    task = task_of(flip=1.0)
    turned = task.training_examples([cohort("alder")]).batch([1], drawn())
    straight = task.channels.batch(session("sub-smith"), slice(1, 2), TISSUES)
    for name in ("source", "target"):
        assert torch.equal(turned[name], straight[name].flip(-1))
    assert turned["target"][..., :8].sum() == 0


def test_pooled_sites_train_on_the_labels_of_each():
    examples = task_of().training_examples([cohort("alder"), cohort("birch")])
    assert [examples.case(i).site for i in range(len(examples))] == ["alder"] * 3 + ["birch"] * 6


def batch_of(*asked: list[float]) -> tuple[Tensor, Tensor, Tensor]:
    draw = drawn(3)
    logits = torch.randn(len(asked), 3, 8, 8, generator=draw)
    target = (torch.rand(len(asked), 3, 8, 8, generator=draw) > 0.5).float()
    return logits, target, torch.tensor(asked)


def test_the_loss_is_dice_over_the_batch_and_cross_entropy_of_what_is_asked():
    logits, target, asked = batch_of([1, 1, 0], [0, 1, 0])
    expected: list[float] = []
    for structure, samples in ((0, [0]), (1, [0, 1])):
        real = target[samples, structure]
        found = logits[samples, structure].sigmoid()
        overlap = 2 * float((found * real).sum()) / float(found.sum() + real.sum())
        expected.append(1 - overlap)
    assert dice_loss(logits, target, asked).item() == pytest.approx(sum(expected) / 2, abs=1e-5)
    entropies = [
        functional.binary_cross_entropy_with_logits(logits[b, s], target[b, s])
        for b, s in ((0, 0), (0, 1), (1, 1))
    ]
    expected_entropy = float(torch.stack(entropies).mean())
    assert cross_entropy(logits, target, asked).item() == pytest.approx(expected_entropy, rel=1e-5)


def test_what_is_not_asked_for_gives_no_gradient():
    logits, target, asked = batch_of([1, 0, 0], [1, 1, 0])
    logits.requires_grad_()
    (dice_loss(logits, target, asked) + cross_entropy(logits, target, asked)).backward()
    assert logits.grad is not None
    moved = logits.grad.abs().sum((2, 3)) > 0
    assert moved.tolist() == [[True, False, False], [True, True, False]]


def with_target(*boxes: tuple[int, int]) -> Batch:
    """A case of two slices that asks for csf and white; (structure, columns from the left)."""
    batch = task_of().channels.batch(session("sub-smith", 2), slice(None), TISSUES)
    batch["target"] = torch.zeros(2, 3, 16, 16)
    for structure, columns in boxes:
        batch["target"][:, structure, :, :columns] = 1
    return batch


def test_a_case_has_the_mean_over_its_structures_and_each_ones_dice():
    task, batch = task_of(), with_target((0, 8), (1, 8))
    prediction = batch["target"].clone()
    prediction[:, 1] = 0
    prediction[:, 1, :, :4] = 0.5  # half of what is real, on the threshold
    prediction[:, 2] = 1.0  # nobody asks for this one
    values = {name: value.tolist() for name, value in task.score(prediction, batch).items()}
    assert values["dice_csf"] == [1.0]
    assert values["dice_white"] == pytest.approx([2 / 3])
    assert values["dice"] == pytest.approx([5 / 6])
    assert values["hd95"] == pytest.approx([16.0 / 2])  # four columns of 4 mm at one structure
    assert set(values) == {"dice", "hd95", "dice_csf", "dice_white"}


def test_a_single_structure_has_no_second_name():
    task = task_of()
    batch = task.channels.batch(session("sub-smith"), slice(None), LESION)
    assert set(task.score(batch["target"], batch)) == {"dice", "hd95"}


@pytest.mark.parametrize("dims", [2, 3])
def test_slices_of_known_heights_are_scored_in_space_too(dims: int):
    patient = replace(session("sub-brown"), heights=(0.0, 6.0, 12.0))
    site = Cohort("birch", {"train": (), "validation": (), "test": (patient,)})
    task = task_of(dims=dims)
    batch = task.evaluation_examples([site], "test").batch([0], None)
    values = task.score(torch.zeros_like(batch["target"]), batch)
    assert values["hd95"].item() == pytest.approx((48**2 + 64**2) ** 0.5)
    assert values["hd95_3d"].item() == pytest.approx((48**2 + 64**2 + 18**2) ** 0.5)


def test_an_empty_mask_is_told_apart_from_a_perfect_prediction():
    """MIC-DKFZ/nnUNet#1418 and #1065, Project-MONAI/MONAI#4052."""
    task, batch = task_of(), with_target((0, 8), (0, 0))
    perfect = task.score(batch["target"], batch)
    assert perfect["dice"].item() == 1
    assert perfect["empty"].item() == 0.5, "one of two structures"
    cases = [
        CaseScore(site="birch", patient=f"p{n}", case="1", task="T1w->lesion", values=values)
        for n, values in enumerate([{"dice": 1.0, "empty": 1.0}, {"dice": 0.5}, {"dice": 0.6}])
    ]
    assert task.summary(cases)["empty"] == pytest.approx(1 / 3)
    assert "empty" not in task.summary(cases[1:])


def test_a_score_that_only_some_labels_have_is_averaged_over_those():
    def case(task: str, **values: float) -> CaseScore:
        return CaseScore(site="birch", patient="p001", case="1", task=task, values=values)

    found = task_of().summary([case("a", dice=0.2), case("b", dice=0.6, dice_csf=0.5)])
    assert found == pytest.approx({"dice": 0.4, "dice_csf": 0.5})
    assert task_of().summary([]) == {}


def test_a_picture_shows_the_middle_slice_with_a_grey_for_each_structure():
    task, batch = task_of(), with_target((0, 12), (1, 4))
    shown = task.picture(batch["target"], batch)
    assert {image.shape for image in shown.values()} == {(16, 16)}
    assert shown["target"][0].tolist() == [1.0] * 4 + [0.5] * 8 + [0.0] * 4
    assert (shown["target"] == shown["prediction"]).all()
    assert shown["source"][0, 0] == pytest.approx(0.2)


def test_prediction_does_not_depend_on_how_many_slices_go_at_a_time():
    task = task_of(dropout=0.3)
    model = task.build(1)
    batch = task.channels.batch(session("sub-smith", 19), slice(None), TISSUES)
    with torch.no_grad():
        whole = task.predict(model.train(), batch)
        parts = [task.predict(model, {"source": batch["source"][k : k + 1]}) for k in range(19)]
    torch.testing.assert_close(whole, torch.cat(parts), rtol=0, atol=1e-5)
    assert 0 <= float(whole.min()) <= float(whole.max()) <= 1


@pytest.mark.parametrize("dims", [2, 3])
def test_stages_one_by_one_give_what_the_model_gives(dims: int):
    task = task_of(dims=dims)
    model, batch = task.build(1), task.training_examples([cohort(slices=5)]).batch([0, 1], drawn())
    carried = task.inputs(batch)
    for stage in task.stages(model):
        carried = task.run(model, [stage], carried)
    assert torch.equal(carried["output"], model(batch["source"]))
    cut = [loss for _, loss in task.losses_of_output(model, carried["output"], batch)]
    assert cut == [loss for _, loss in task.losses(model, batch)]


def test_patches_are_cut_from_volumes_and_shallow_ones_are_filled_with_nothing():
    task = task_of(dims=3, flip=0.0)
    deep, shallow = cohort("alder", 9), cohort("alder", 3)
    examples = task.training_examples([deep])
    assert len(examples) == 3  # nine slices, four at a time; one session has no csf
    batch = examples.batch([0, 1, 2], drawn())
    assert batch["source"].shape == (3, 2, 4, 8, 8)
    assert batch["target"].shape == (3, 3, 4, 8, 8)
    assert batch["asked"].shape == (3, 3)
    starts = {round(float(examples.batch([0], drawn(s))["source"].amax()), 1) for s in range(30)}
    assert len(starts) == 6
    filled = task.training_examples([shallow]).batch([0], drawn())
    assert (filled["source"][0, 0, 3] == 0).all()
    assert (filled["source"][0, 0, :3] > 0).all()


def test_a_volume_is_scored_whole_in_three_dimensions():
    task = task_of(dims=3)
    batch = task.evaluation_examples([cohort("alder", 9)], "test").batch([0], None)
    with torch.no_grad():
        prediction = task.predict(task.build(1), batch)
    assert prediction.shape == (1, 3, 9, 16, 16)
    assert as_slices(prediction).shape == (9, 3, 16, 16)
    assert {v.shape for v in task.score(batch["target"], batch).values()} == {(1,)}
    assert task.score(batch["target"], batch)["dice"].tolist() == [1.0]


@pytest.mark.parametrize("norm", ["instance", "batch"])
def test_the_groups_that_are_printed_partition_the_network(norm: str):
    task = task_of(norm=norm)
    model = task.build(1)
    groups = {n: g for n, g in task.groups(model).items() if n not in (*UNIONS, "norm")}
    assert list(groups) == ["encoder", "bottleneck", "decoder", "output"]
    for name in model.state_dict():
        assert sum(keep(name) for keep in groups.values()) == 1
    found = task.groups(model)
    assert select(model.state_dict(), found["head"]).keys() == {
        "network.output.weight",
        "network.output.bias",
    }
    assert all(map(found["all"], model.state_dict()))
    assert any(map(found["norm"], model.state_dict())) == (norm == "batch")


@pytest.mark.parametrize("dims", [2, 3])
def test_a_blank_batch_has_the_form_of_a_real_one(dims: int):
    task = task_of(dims=dims)
    blank = task.blank((8, 8) if dims == 3 else (16, 16))
    real = task.training_examples([cohort(slices=5)]).batch([0], drawn())
    assert {n: (t.shape, t.dtype) for n, t in blank.items()} == {
        n: (t.shape, t.dtype) for n, t in real.items()
    }
    assert [part for part, _ in task.losses(task.build(1), blank)] == ["network"]


@pytest.mark.parametrize(
    ("options", "label", "sentence"),
    [
        ({}, "T1w lesion", "write it as"),
        ({}, "PDw->lesion", "contrast 'PDw' is not in elements.contrasts (T1w, T2w, FLAIR)"),
        ({}, "T1w->", "'' names no structure"),
        ({}, "T1w->FLAIR", "'FLAIR' names no structure"),
        ({}, "T1w+T1w->lesion", "a name stands there twice"),
        ({"channels": (8,)}, "T1w->csf", "task.channels is [8]; it needs two levels or more"),
        ({"channels": (8, 8, 8, 8, 8, 8)}, "T1w->csf", "both numbers must be multiples of 32"),
        ({"dims": 3, "patch": (4, 32, 8)}, "T1w->csf", "rows and columns within elements.size"),
        ({"patch": (4, 16, 16)}, "T1w->csf", "task.patch would do nothing: task.dims is 2"),
        ({"dims": 3, "patch": (3, 8, 8)}, "T1w->csf", "must be multiples of 2"),
        ({"dropout": 2.0}, "T1w->csf", "task.dropout is 2.0; it is a probability"),
    ],
)
def test_what_cannot_be_trained_is_refused(options: dict[str, object], label: str, sentence: str):
    chosen = Segmentation(**{"channels": (4, 6), **options})  # pyright: ignore[reportArgumentType]
    with pytest.raises(BadStudy) as refused:
        chosen.check(ELEMENTS, {"alder": (label,)})
    assert sentence in str(refused.value)


STUDY = """
name = "outlines"
rounds = 1

[elements]
contrasts = ["T1w", "FLAIR"]
size = [32, 32]
spacing = [6.0, 6.0]
split = { train = 0.5, validation = 0.0, test = 0.5 }

[task]
kind = "segmentation"
channels = [4, 6]

[training]
batch_size = 4
learning_rate = 1e-2
threads = 1

[method]
kind = "fedavg"
"""
SIMULATED = """
[[site]]
name = "alder"
data = "simulated"
tasks = ["T1w->csf+white"]
patients = { train = 1, validation = 1, test = 1 }
slices = 4

[[site]]
name = "birch"
data = "simulated"
tasks = ["FLAIR+T1w->lesion", "T1w->grey"]
patients = { train = 1, validation = 1, test = 1 }
slices = 4
"""
REAL = """
[[site]]
name = "ljubljana"
tasks = ["T1w+FLAIR->lesion"]
"""


def written(folder: Path, sites: str) -> Path:
    path = folder / "study.toml"
    path.write_text(STUDY + sites)
    return path


@pytest.mark.slow
@pytest.mark.parametrize("options", [(), ("task.dims=3", "task.patch=[4, 16, 16]")])
def test_a_federation_of_different_labels_trains_a_round(tmp_path: Path, options: tuple[str, ...]):
    """Two hospitals that know different structures; each stage of the network moves."""
    federation = built(read_study(written(tmp_path, SIMULATED), options), tmp_path / "run")
    before = dict(federation.start.weights)
    [outcome] = played(federation, 1)
    assert_trained(before, outcome.state.weights)
    assert outcome.state.weights.keys() == before.keys()


@pytest.mark.slow
def test_training_in_3d_ends_in_the_same_bits_twice(tmp_path: Path):
    """Maps become two slices deep, where bfloat16 on some CPUs reads what nobody wrote."""
    options = ("task.dims=3", "task.patch=[4, 16, 16]", "task.channels=[8, 16]", "rounds=2")
    study = read_study(written(tmp_path, SIMULATED), options)
    for name in ("once", "again"):
        spoil_memory(torch.device("cpu"))
        run(study, tmp_path / name)
    assert digests(tmp_path / "once") == digests(tmp_path / "again")
    assert len(set(digests(tmp_path / "once"))) == 2


@pytest.mark.slow
def test_a_run_scores_each_label_of_each_hospital_and_writes_its_report(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    study, folder = written(tmp_path, SIMULATED), tmp_path / "run"
    done = inside(monkeypatch, capsys, "run", study, "--out", folder, "--quiet")
    assert done.code == 0, done.err
    found = {(row["site"], row["task"], row["metric"]) for row in rows(folder / "scores.csv")}
    assert {(s, t) for s, t, _ in found} == {
        ("alder", "T1w->csf+white"),
        ("birch", "FLAIR+T1w->lesion"),
        ("birch", "T1w->grey"),
    }
    assert ("alder", "T1w->csf+white", "dice_csf") in found
    assert ("birch", "T1w->grey", "dice_grey") not in found
    assert "Dice" in (folder / "report.html").read_text("utf-8")


@pytest.mark.slow
def test_real_lesions_are_trained_on_and_scored(
    tmp_path: Path,
    real_data: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    """Two real patients with lesion masks, one to train on and one to test on."""
    site = tmp_path / "ljubljana.toml"
    site.write_text(
        f'name = "ljubljana"\ndata = "{real_data}/mri/site-lju3t"\ncache = "{tmp_path}/prepared"\n'
    )
    study, folder = written(tmp_path, REAL), tmp_path / "run"
    words = ("run", study, "--site", site, "--out", folder, "--set", "elements.split.salt=a")
    done = inside(monkeypatch, capsys, *words, "--quiet")
    assert done.code == 0, done.err
    found = {row["metric"]: float(row["value"]) for row in rows(folder / "scores.csv")}
    assert 0 <= found["dice"] <= 1
    assert 0 <= found["hd95"] <= 32 * 6 * 2**0.5


def test_a_method_with_personalisation_blocks_is_refused(tmp_path: Path):
    with pytest.raises(BadStudy, match='method "pflsynth" needs'):
        read_study(written(tmp_path, SIMULATED), ("method.kind=pflsynth",))
