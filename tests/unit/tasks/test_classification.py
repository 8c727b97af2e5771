"""Classification: labels, what an example is, the network and its cuts, scores, a whole run."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Generator, Tensor

from grandrounds.algorithms.sharing import UNIONS
from grandrounds.core.errors import BadSite, BadStudy
from grandrounds.core.messages import CaseScore
from grandrounds.core.weights import digest, select
from grandrounds.data.cohort import Cohort, Session
from grandrounds.data.elements import Elements
from grandrounds.models.classifiers import Classifier, ClassifierShape, build_classifier
from grandrounds.study.file import read_study
from grandrounds.tasks import Classification
from grandrounds.tasks.binary import binary_loss, binary_scores, binary_summary
from grandrounds.tasks.classification import ClassificationLabel, ClassificationTask
from tests.helpers.command import inside
from tests.helpers.federation import assert_trained, built, played, rows
from tests.helpers.task_studies import tiny_of

CONTRASTS = ("T1w", "T2w", "FLAIR")
ELEMENTS = Elements(CONTRASTS, (16, 16), variables=("age", "tumour"))
LESION = {"alder": ("FLAIR->lesion",), "birch": ("T1w->lesion", "FLAIR+T1w->lesion")}
TUMOUR = {"alder": ("T2w->tumour",)}
SHAPE = ClassifierShape(inputs=2, width=4, blocks=2)


def task_of(sites: dict[str, tuple[str, ...]] = LESION, **options: object) -> ClassificationTask:
    small: dict[str, object] = {"width": 4, "blocks": 2, **options}
    return Classification(**small).bind(ELEMENTS, sites)  # pyright: ignore[reportArgumentType]


def session(patient: str, *pixels: int, tumour: float | None = None) -> Session:
    """A slice for each number of lesion pixels; pixels that say which slice and contrast."""
    images = np.empty((len(pixels), 3, 16, 16), np.float32)
    images[:] = 0.1 * np.arange(1, len(pixels) + 1)[:, None, None, None]
    images += 0.25 * np.arange(3)[:, None, None]
    images[..., 8:] = 0
    lesion = np.zeros((len(pixels), 256), np.uint8)
    for row, number in zip(lesion, pixels, strict=True):
        row[:number] = 1
    values = {"age": 60.0} | ({} if tumour is None else {"tumour": tumour})
    masks = {"lesion": lesion.reshape(-1, 16, 16)}
    return Session(patient, "", CONTRASTS, images, masks, values)


def cohort(site: str, *sessions: Session) -> Cohort:
    return Cohort(site, {"train": sessions, "validation": (), "test": ()})


def drawn(seed: int = 0) -> Generator:
    return Generator().manual_seed(seed)


def image(*shape: int) -> Tensor:
    return torch.rand(shape, generator=drawn(1))


@pytest.mark.parametrize(("least", "labels"), [(1, [0, 1, 1]), (3, [0, 0, 1]), (4, [0, 0, 0])])
def test_a_slice_is_positive_from_the_least_pixels_on(least: int, labels: list[int]):
    examples = task_of(least_pixels=least).evaluation_examples(
        [cohort("alder", session("sub-jo", 0, 2, 3))], "train"
    )
    batch = examples.batch([0, 1, 2], None)
    assert batch["target"].shape == (3, 1)
    assert batch["target"].flatten().tolist() == labels


def test_all_slices_of_a_patient_have_its_variable_and_patients_without_it_are_no_examples():
    patients = (
        session("sub-jo", 0, 9, tumour=1.0),
        session("sub-lee", 5, tumour=0.0),
        session("sub-kim", 5, tumour=math.nan),
        session("sub-ray", 5),
    )
    examples = task_of(TUMOUR).training_examples([cohort("alder", *patients)])
    assert len(examples) == 3
    assert examples.batch([0, 1, 2], drawn())["target"].flatten().tolist() == [1, 1, 0]


def test_a_variable_that_is_neither_0_nor_1_is_refused():
    with pytest.raises(BadSite, match="'alder': a patient's tumour is 3; classification needs 0"):
        task_of(TUMOUR).training_examples([cohort("alder", session("sub-jo", 0, tumour=3.0))])


def test_a_contrast_that_a_label_does_not_look_at_is_zero():
    task = task_of(flip=0.0)
    assert task.reading.contrasts == ("T1w", "FLAIR")
    examples = task.evaluation_examples([cohort("birch", session("sub-jo", 0, 9))], "train")
    assert [examples.case(i).task for i in range(4)] == ["T1w->lesion"] * 2 + [
        "FLAIR+T1w->lesion"
    ] * 2
    source = examples.batch(range(4), None)["source"]
    assert source.shape == (4, 2, 16, 16)
    np.testing.assert_allclose(source[:, 0, 0, 0], [0.1, 0.2, 0.1, 0.2], atol=1e-6)
    np.testing.assert_allclose(source[:, 1, 0, 0], [0.0, 0.0, 0.6, 0.7], atol=1e-6)


def test_training_draws_one_of_the_labels():
    examples = task_of().training_examples([cohort("birch", session("sub-jo", 0, 9))])
    assert len(examples) == 2
    used = [bool(examples.batch([0], drawn(seed))["source"][0, 1].any()) for seed in range(20)]
    assert 3 < sum(used) < 17


def test_a_flip_turns_the_image_in_training_only():
    task = task_of(flip=1.0)
    train = task.training_examples([cohort("alder", session("sub-jo", 3))])
    score = task.evaluation_examples([cohort("alder", session("sub-jo", 3))], "train")
    straight = score.batch([0], None)["source"]
    assert straight[..., 0].any()
    assert torch.equal(train.batch([0], drawn())["source"], straight.flip(-1))


def test_cases_are_named_by_pseudonyms():
    found = task_of().evaluation_examples([cohort("alder", session("sub-jo", 0, 9))], "train")
    case = found.case(1)
    assert (case.site, case.patient, case.case) == ("alder", "p001", "1/001")


def test_stage_by_stage_gives_the_bits_of_the_whole_and_so_do_its_gradients():
    model, source = build_classifier(SHAPE, seed=1), image(3, 2, 16, 16)
    names = list(model.stages())
    assert names == ["stem", "features_0", "features_1", "classifier"]
    whole = model(source)
    whole.square().mean().backward()
    gradients = [p.grad.clone() for p in model.parameters() if p.grad is not None]
    for cut in range(1, len(names)):
        model.zero_grad()
        carried = model.run(names[:cut], {"source": source})
        assert list(carried) == ["features"]
        output = model.run(names[cut:], carried)["output"]
        assert torch.equal(output, whole), f"cut at {cut}"
        output.square().mean().backward()
        again = [p.grad for p in model.parameters() if p.grad is not None]
        assert all(map(torch.equal, again, gradients))


def test_the_network_halves_what_it_sees_and_is_built_by_its_seed():
    model = build_classifier(SHAPE, seed=1)
    carried: dict[str, Tensor] = {"source": image(1, 2, 28, 28)}
    sizes: list[tuple[int, ...]] = []
    for stage in ("stem", "features_0", "features_1"):
        carried = model.run([stage], carried)
        sizes.append(tuple(carried["features"].shape))
    assert sizes == [(1, 4, 14, 14), (1, 8, 7, 7), (1, 16, 4, 4)]
    same, other = (build_classifier(SHAPE, seed=s).state_dict() for s in (1, 2))
    assert digest(same) == digest(model.state_dict()) != digest(other)


def test_float64_stays_and_one_case_does_not_see_another():
    model = build_classifier(SHAPE, seed=1).double()
    source = image(4, 2, 16, 16).double()
    assert model(source).dtype == torch.float64
    torch.testing.assert_close(model(source)[1:2], model(source[1:2]), rtol=1e-12, atol=1e-12)


def test_the_loss_is_the_mean_cross_entropy_and_positives_weigh_as_told():
    logits, target = torch.tensor([[0.0], [2.0], [-1.0]]), torch.tensor([[1.0], [0.0], [1.0]])
    each = [math.log(2), math.log(1 + math.exp(2)), math.log(1 + math.exp(1))]
    assert binary_loss(logits, target).item() == pytest.approx(sum(each) / 3, abs=1e-6)
    heavy = binary_loss(logits, target, positive_weight=5.0).item()
    assert heavy == pytest.approx((5 * each[0] + each[1] + 5 * each[2]) / 3, abs=1e-6)


def test_a_case_has_its_log_loss_and_whether_it_is_right():
    found = binary_scores(torch.tensor([[0.9], [0.5], [0.2]]), torch.tensor([[1.0], [0.0], [1.0]]))
    expected = [-math.log(0.9), -math.log(0.5), -math.log(0.2)]
    np.testing.assert_allclose(found["log_loss"], expected, atol=1e-6)
    assert torch.equal(found["log_score"], -found["log_loss"])
    assert found["accuracy"].tolist() == [1, 0, 0]
    assert found["label"].tolist() == [1, 0, 1]
    sure = binary_scores(torch.tensor([[1.0]]), torch.tensor([[0.0]]))
    assert math.isfinite(sure["log_loss"].item())


def scores(*cases: tuple[str, float, float], site: str = "alder") -> list[CaseScore]:
    """Cases of (patient, probability, label)."""
    made: list[CaseScore] = []
    for number, (patient, found, real) in enumerate(cases):
        values = binary_scores(torch.tensor([[found]]), torch.tensor([[real]]))
        own = {name: value.item() for name, value in values.items()}
        made.append(CaseScore(site=site, patient=patient, case=f"{number}", task="t", values=own))
    return made


SLICES = scores(("p1", 0.9, 1.0), ("p1", 0.1, 1.0), ("p2", 0.4, 0.0), ("p2", 0.2, 0.0))


@pytest.mark.parametrize(("whole", "auc"), [(True, 1.0), (False, 0.5)])
def test_slices_of_a_patient_are_one_case_where_the_patient_has_the_label(whole: bool, auc: float):
    """By patient 0.5 against 0.3; by slice 0.9, 0.1 against 0.4, 0.2."""
    found = binary_summary(SLICES, whole=whole, specificity=0.9)
    assert found["auc"] == auc
    assert set(found) == {
        *("log_score", "log_loss", "accuracy", "auc", "balanced_accuracy", "sensitivity_at_90")
    }


def test_the_task_knows_whether_its_target_is_of_the_patient_or_of_the_slice():
    assert task_of(TUMOUR).summary(SLICES)["auc"] == 1.0
    assert task_of(LESION).summary(SLICES)["auc"] == 0.5


def test_one_class_only_leaves_out_the_auc_but_not_what_early_stopping_watches():
    found = task_of().summary(scores(("p1", 0.3, 0.0), ("p2", 0.1, 0.0)))
    assert set(found) == {"log_score", "log_loss", "accuracy"}
    assert found[task_of().metric] == -found["log_loss"]
    assert task_of().summary([]) == {}


def test_a_site_with_one_class_plays_no_part_in_the_mean_auc():
    other = scores(("p1", 0.3, 0.0), site="birch")
    assert task_of().summary([*SLICES, *other])["auc"] == 0.5


def test_a_specificity_names_its_sensitivity():
    found = task_of(specificity=0.75).summary(SLICES)
    assert "sensitivity_at_75" in found


@pytest.mark.parametrize("norm", ["instance", "batch"])
def test_groups_split_the_network(norm: str):
    task = task_of(norm=norm)
    model = task.build(1)
    names = {name: torch.zeros(1) for name in model.state_dict()}
    groups = {name: set(select(names, keep)) for name, keep in task.groups(model).items()}
    assert groups["stem"] | groups["features"] | groups["classifier"] == groups["all"] == set(names)
    assert sum(map(len, (groups[g] for g in ("stem", "features", "classifier")))) == len(names)
    assert groups["head"] == groups["classifier"] < groups["upper"] < groups["all"]
    assert bool(groups["norm"]) is (norm == "batch")
    assert groups.keys() >= set(UNIONS)


def test_a_picture_is_the_slice_in_the_contrast_that_is_looked_at():
    task = task_of()
    examples = task.evaluation_examples([cohort("alder", session("sub-jo", 3))], "train")
    batch = examples.batch([0], None)
    picture = task.picture(torch.zeros(1, 1), batch)
    np.testing.assert_array_equal(picture["source"], batch["source"][0, 1].numpy())
    assert task.picture(torch.zeros(1, 1), task.blank((16, 16)))["source"].shape == (16, 16)


@pytest.mark.parametrize(
    ("change", "labels", "sentence"),
    [
        ({"blocks": 4}, ("FLAIR->lesion",), r"with task.blocks = 4 both numbers must be 33 or"),
        ({"blocks": 0}, ("FLAIR->lesion",), "task.blocks is 0"),
        ({"least_pixels": 0}, ("FLAIR->lesion",), "task.least_pixels is 0"),
        ({"positive_weight": 0.0}, ("FLAIR->lesion",), "task.positive_weight is 0"),
        ({"specificity": 90.0}, ("FLAIR->lesion",), "task.specificity is 90"),
        ({}, ("lesion",), "write it as"),
        ({}, ("CT->lesion",), r"contrast 'CT' is not in elements.contrasts \(T1w, T2w, FLAIR\)"),
        ({}, ("T1w->FLAIR",), "no one target"),
        ({}, ("T1w->csf+grey",), "no one target"),
        ({}, ("T1w+T1w->lesion",), "twice"),
        ({}, ("T1w->lesion", "T1w->age"), "targets age, lesion; a classifier has one"),
    ],
)
def test_what_cannot_be_classified_is_refused(
    change: dict[str, object], labels: tuple[str, ...], sentence: str
):
    options: dict[str, object] = {"blocks": 2, **change}
    with pytest.raises(BadStudy, match=sentence):
        Classification(**options).check(ELEMENTS, {"alder": labels})  # pyright: ignore[reportArgumentType]


def test_the_label_is_read_and_written():
    finding = ClassificationLabel.parse(" T1w + FLAIR -> lesion")
    assert finding == ClassificationLabel(("T1w", "FLAIR"), "lesion")
    assert finding.label == "T1w+FLAIR->lesion"


def test_a_round_moves_every_stage(tmp_path: Path):
    federation = built(tiny_of("classification", sites=2), tmp_path / "run")
    before = dict(federation.start.weights)
    [outcome] = played(federation, 1)
    assert_trained(before, outcome.state.weights)
    assert isinstance(task_of().build(1), Classifier)


@pytest.mark.slow
def test_a_run_scores_each_slice_and_writes_its_report(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    """On grey matter, the study that the package brings: there both classes are common."""
    study, folder = Path(__file__).parents[3] / "studies" / "classification.toml", tmp_path / "run"
    options = ("--set", "rounds=2", "--set", "training.epochs=1")
    done = inside(monkeypatch, capsys, "run", study, *options, "--out", folder, "--quiet")
    assert done.code == 0, done.err
    found = rows(folder / "scores.csv")
    names = {"log_loss", "log_score", "accuracy", "probability", "label"}
    assert {row["metric"] for row in found} == names
    spec = read_study(study).site[0]
    assert spec.patients is not None
    slices = {(row["patient"], row["case"]) for row in found if row["site"] == spec.name}
    assert len(slices) == spec.patients.test * spec.slices
    assert "AUC" in (folder / "report.html").read_text("utf-8")
