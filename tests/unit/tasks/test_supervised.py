"""A task of one's own: what it needs to say, what is refused, and what the house makes of it."""

import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from torch import Generator, Tensor, nn

import grandrounds as gr
from examples.own_task import Nodules
from grandrounds.core.errors import BadSite, BadStudy
from grandrounds.data.elements import Elements
from grandrounds.runs.build import check_processes
from grandrounds.runs.costs import estimate, plan_run, workload
from grandrounds.runs.site_data import open_sites
from grandrounds.study.file import (
    fingerprint,
    parse_study,
    read_table,
    study_schema,
    to_table,
    to_toml,
)
from grandrounds.study.site_file import SiteDataset, SiteFile
from grandrounds.study.study import Study
from grandrounds.tasks import task_class
from grandrounds.tasks.supervised import BoundTask, SupervisedTask
from tests.helpers.federation import TINY
from tests.helpers.own_tasks import (
    Batch,
    Line,
    Points,
    lines,
    nodules,
    points,
    table_of,
    write_volumes,
)

TWO = (points("oak", seed=1), points("yew", seed=2))


def bound(study: Study) -> BoundTask:
    task = study.make_task()
    assert isinstance(task, BoundTask)
    return task


# The study file.


def test_a_study_of_a_task_of_ones_own_reads_back_equal():
    study = nodules("task.patch=12")
    assert study.task == Nodules(patch=12, features=4)
    assert to_table(study)["task"] == {
        "kind": "examples.own_task:Nodules",
        "patch": 12,
        "features": 4,
    }
    again = parse_study(tomllib.loads(to_toml(study)))
    assert again == study
    assert fingerprint(again) == fingerprint(study)


def test_its_options_are_checked_as_all_others():
    with pytest.raises(BadStudy, match=r"unknown key 'task\.pach'; did you mean 'patch'"):
        nodules("task.pach=12")
    with pytest.raises(
        BadStudy, match=r"task\.patch = 'much' is wrong; it should be a valid integ"
    ):
        nodules('task.patch="much"')


def test_its_word_may_be_an_entry_point(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    info = tmp_path / "our_tasks-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: our-tasks\nVersion: 1.0\n")
    words = "[grandrounds.tasks]\nnodules = examples.own_task:Nodules\n"
    (info / "entry_points.txt").write_text(words)
    monkeypatch.syspath_prepend(tmp_path)
    assert task_class("nodules") is Nodules
    assert nodules("task.kind=nodules") == nodules()


def test_the_schema_has_a_place_for_it():
    schema = study_schema()
    references = [each["$ref"] for each in schema["properties"]["task"]["anyOf"]]
    assert "#/$defs/SupervisedTask" in references
    of_others = schema["$defs"]["SupervisedTask"]
    assert "segmentation" in of_others["properties"]["kind"]["not"]["enum"]
    assert "additionalProperties" not in of_others


def test_a_task_of_the_house_still_needs_its_elements():
    table = read_table(TINY)
    del table["elements"]
    with pytest.raises(BadStudy, match="'elements' is missing"):
        parse_study(table)


def refused(study: dict[str, Any], *overrides: str) -> str:
    with pytest.raises(BadStudy) as error:
        parse_study(study, overrides)
    return str(error.value)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"elements": {"contrasts": ["T1w"]}}, "elements.contrasts would do nothing: task.kind = "),
        ({"elements": {"spacing": [1.0, 1.0]}}, "elements.spacing would do nothing"),
        ({"elements": {"variables": ["age"]}}, "elements.variables would do nothing"),
        (
            {"site": [{"name": "oak", "tasks": ["nodule"], "data": "simulated"}]},
            "site 'oak' is simulated, and task.kind = ",
        ),
        (
            {"site": [{"name": "oak", "tasks": ["nodule", "tumour"]}]},
            "site 'oak' has the tasks nodule, tumour; all items of a site are of one task",
        ),
        (
            {"topology": {"kind": "split", "cut": "network"}},
            'topology "split" cannot cut the network of task.kind = "tests.helpers.own_tasks:Line"',
        ),
        (
            {"method": {"kind": "pflsynth"}},
            'method "pflsynth" needs task.generator = "personalised"',
        ),
    ],
)
def test_what_makes_no_sense_with_it_is_refused(changes: dict[str, Any], sentence: str):
    assert sentence in refused(table_of(Line, **changes))


def test_a_method_for_groups_that_its_network_lacks_is_refused():
    with pytest.raises(BadStudy, match="no parameter group 'critic'; this task has body, outpu"):
        plan_run(lines(method={"kind": "fedgan"}))


def test_norm_buffers_without_batch_norm_would_do_nothing():
    found = refused(table_of(Plain), "training.norm_buffers=private")
    assert found.endswith("would do nothing: the network keeps no running statistics. Remove it.")
    assert lines(Line, "training.norm_buffers=private").task.has_statistics


@dataclass(frozen=True)
class Plain(Line):
    """Without batch norm."""

    def network(self) -> nn.Module:
        return nn.Linear(2, 1)


# A class that is no task, or not a whole one.


class Undecorated(Line):
    """Without a decorator."""

    extra: int = 1


@dataclass(frozen=True)
class Unfinished(gr.SupervisedTask):
    """Without three of four functions."""

    metric: ClassVar[str] = "closeness"

    def network(self) -> nn.Module:
        return nn.Linear(2, 1)


@dataclass(frozen=True)
class Unmeasured(gr.SupervisedTask):
    """Without a metric."""

    network = Line.network
    blank = Line.blank
    loss = Line.loss
    score = Line.score


@dataclass(frozen=True)
class Taken(Line):
    """With an option that the house uses."""

    kind: str = "mine"  # pyright: ignore[reportIncompatibleMethodOverride, reportAssignmentType]


@dataclass(frozen=True)
class Unwritable(Line):
    """With an option that no file can hold."""

    place: torch.device | None = None


@pytest.mark.parametrize(
    ("kind", "sentence"),
    [
        (Undecorated, "it is no dataclass; write @dataclass(frozen=True) above the class"),
        (Unfinished, "it lacks blank, loss, score; a task of one's own writes them"),
        (Unmeasured, "it names no metric; for example metric: ClassVar[str]"),
        (Taken, "no option may be named kind"),
        (Unwritable, "a field of Unwritable has a type that no study file can hold"),
        (Points, "is no class of grandrounds.tasks.supervised.SupervisedTask"),
    ],
)
def test_a_class_that_is_no_whole_task_is_refused(kind: type, sentence: str):
    assert sentence in refused(table_of(kind))


# Functions that do not fit each other.


@dataclass(frozen=True)
class Bent(Line):
    """Fails in one of many ways."""

    way: str = ""

    def network(self) -> Any:
        match self.way:
            case "network":
                raise ValueError("no such depth\nand more")
            case "function":
                return torch.relu
            case "lazy":
                return nn.LazyLinear(1)
            case "slash":
                return nn.ModuleDict({"a/b": nn.Linear(2, 1)})
            case "empty":
                return nn.Flatten()
            case _:
                return super().network()

    def blank(self, size: tuple[int, int]) -> Any:
        match self.way:
            case "blank":
                return torch.zeros(1, 2)
            case "two":
                return {"image": torch.zeros(2, 2), "value": torch.zeros(2, 1)}
            case "narrow":
                return {"image": torch.zeros(1, 3), "value": torch.zeros(1, 1)}
            case _:
                return super().blank(size)

    def loss(self, output: Tensor, batch: Batch) -> Any:
        match self.way:
            case "cases":
                return (output - batch["value"]).square().flatten()
            case "number":
                return 1.0
            case "loose":
                return torch.zeros(())
            case _:
                return super().loss(output, batch)

    def score(self, prediction: Tensor, batch: Batch) -> dict[str, Any]:
        scores = super().score(prediction, batch)
        match self.way:
            case "unwatched":
                return {"error": scores["error"]}
            case "mean":
                return {name: values.mean() for name, values in scores.items()}
            case "float":
                return {**scores, "error": 0.1}
            case _:
                return scores

    def groups_of_layers(self) -> Mapping[str, Sequence[str]]:
        return {"start": ["encoder"]} if self.way == "groups" else {}


BENT = {
    "network": 'task.kind = "{kind}": network() failed (ValueError: no such depth)',
    "function": 'task.kind = "{kind}": network() gives a builtin_function_or_method; it must give',
    "lazy": 'task.kind = "{kind}": network() has a layer without a shape yet (weight); say its',
    "slash": 'task.kind = "{kind}": network() has a layer named a/b.weight; leave out the',
    "empty": 'task.kind = "{kind}": network() has no parameter, so there is nothing to train',
    "groups": 'task.kind = "{kind}": groups_of_layers().start: no layer starts with "encoder"; the',
    "blank": 'task.kind = "{kind}": blank() must give a dictionary of tensors with a first axis of',
    "two": 'task.kind = "{kind}": blank() must give a dictionary of tensors with a first axis of 1',
    "narrow": 'task.kind = "{kind}": training on two blank cases failed (RuntimeError: mat1 and',
    "cases": 'task.kind = "{kind}": loss() gives a tensor (2,); it must be a tensor without axes',
    "number": 'task.kind = "{kind}": loss() gives a float; it must be a tensor without axes',
    "loose": 'task.kind = "{kind}": loss() depends on no parameter of the network',
    "unwatched": 'task.kind = "{kind}": score() gives error, and not its metric closeness',
    "mean": 'task.kind = "{kind}": score() gives a tensor () as error for 1 case; it must be a ',
    "float": 'task.kind = "{kind}": score() gives a float as error for 1 case; it must be a tensor',
}


@pytest.mark.parametrize("way", BENT)
def test_functions_that_do_not_fit_are_refused_before_anything_trains(way: str):
    with pytest.raises(BadStudy) as error:
        plan_run(lines(Bent, f"task.way={way}"))
    assert BENT[way].format(kind=f"{__name__}:Bent") in str(error.value)


def test_the_pass_without_data_leaves_no_trace():
    before = torch.get_rng_state()
    plan = plan_run(lines())
    fresh = plan.task.build(plan.study.seed).state_dict()
    assert all(torch.equal(t, fresh[name]) for name, t in plan.model.state_dict().items())
    estimate(plan)
    workload(plan)
    assert torch.equal(torch.get_rng_state(), before)


def test_first_weights_depend_on_the_seed_alone():
    task = bound(lines())
    first, again, other = (task.build(seed).state_dict() for seed in (1, 1, 2))
    assert all(torch.equal(tensor, again[name]) for name, tensor in first.items())
    assert not torch.equal(first["network.0.weight"], other["network.0.weight"])


@dataclass(frozen=True)
class Choosy(Line):
    """Takes one label, and needs real numbers in its loss."""

    def check(self, elements: Elements, sites: Mapping[str, Sequence[str]]) -> None:
        if any(labels != ("nodule",) for labels in sites.values()):
            raise BadStudy("the only label is nodule")

    def loss(self, output: Tensor, batch: Batch) -> Tensor:
        scale = 1.0 if float(batch["value"].sum()) >= 0 else 2.0
        return scale * super().loss(output, batch)


def test_its_own_check_is_asked():
    assert "the only label is nodule" in refused(
        table_of(Choosy, site=[{"name": "oak", "tasks": ["other"]}])
    )


def test_work_is_counted_of_functions_that_need_real_numbers():
    plan = plan_run(lines(Choosy, "training.batch_size=6"))
    work = workload(plan)
    forward = 6 * 2 * (2 * 4 + 4 * 1)  # a multiplication and an addition for each weight
    backward = 6 * 2 * (2 * 4 + 2 * 4 * 1)  # the first layer's input needs no gradient
    assert work.flops_per_step == forward + backward
    assert work.parameters == 2 * 4 + 4 + 4 + 4 + 4 + 1


# Batches.


def test_training_has_patches_and_evaluation_whole_volumes(tmp_path: Path):
    study = nodules()
    data = open_sites(study, write_volumes(tmp_path))
    task = bound(study)
    training = task.training_examples(data["oak"].cohorts)
    draw = torch.Generator().manual_seed(1)
    assert training.batch(range(len(training)), draw)["image"].shape[1:] == (1, 16, 16, 16)
    test = task.evaluation_examples(data["oak"].cohorts, "test")
    shapes = {tuple(test.batch([index], None)["image"].shape) for index in range(len(test))}
    assert max(max(shape) for shape in shapes) > 16
    with torch.no_grad():
        batch = test.batch([0], None)
        assert task.predict(task.build(1), batch).shape == (1, 1)


def test_augmentation_depends_on_the_generator_alone(tmp_path: Path):
    study = nodules()
    data = open_sites(study, write_volumes(tmp_path))
    training = bound(study).training_examples(data["oak"].cohorts)
    first, again, other = (
        training.batch([0, 1], torch.Generator().manual_seed(seed))["image"] for seed in (1, 1, 2)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


@dataclass(frozen=True)
class Whole(Nodules):
    """Trains on volumes as they are."""

    at_once: int = 1

    @property
    def cases_at_once(self) -> int:  # pyright: ignore[reportIncompatibleVariableOverride]
        return self.at_once

    def augment(self, batch: Batch, generator: Generator) -> Batch:
        return batch


@dataclass(frozen=True)
class Dizzy(Nodules):
    """Cannot augment."""

    def augment(self, batch: Batch, generator: Generator) -> Batch:
        raise ValueError("no room for a patch")


def test_volumes_of_several_sizes_are_no_batch(tmp_path: Path):
    sources = write_volumes(tmp_path)

    def opened(kind: type, *overrides: str) -> None:
        open_sites(parse_study(table_of(kind), overrides), sources)

    apart = r"site 'oak', items \d+, \d+.*: image has the shapes \(1, \d+, .*\) and \(1, "
    with pytest.raises(BadSite, match=apart + r".*augment\(\) must bring them to one"):
        opened(Whole)
    opened(Whole, "training.batch_size=1")
    with pytest.raises(BadSite, match=apart + ".*cases_at_once is 4, and must be 1"):
        opened(Whole, "training.batch_size=1", "task.at_once=4")
    with pytest.raises(
        BadSite, match=r"site 'oak', item \d+: augment\(\) cannot take it .ValueErr"
    ):
        opened(Dizzy)
    with pytest.raises(BadStudy, match="cases_at_once is 0; it must be 1 or more"):
        opened(Whole, "task.at_once=0")


def test_a_score_that_is_not_finite_is_an_error():
    task, batch = bound(lines()), Line().blank((1, 1))
    with pytest.raises(FloatingPointError, match=r"score 'closeness' is \[nan\]; leave it out"):
        task.score(torch.full((1, 1), torch.nan), batch)


def test_the_watched_score_comes_first():
    task, batch = bound(lines()), Line().blank((1, 1))
    assert list(task.score(torch.zeros(1, 1), batch)) == ["closeness", "error"]


# Sites.


def test_a_site_needs_its_file_its_dataset_and_its_folder(tmp_path: Path):
    with pytest.raises(BadSite, match="site 'yew' needs its site file"):
        open_sites(lines(), TWO[:1])
    with pytest.raises(BadSite, match=r"own_tasks:Line has no dataset\(folder\), which opens"):
        open_sites(lines(), [SiteFile("oak", tmp_path), TWO[1]])
    with pytest.raises(BadSite, match=r"site 'oak': .*nowhere does not exist"):
        open_sites(nodules(), [SiteFile("oak", tmp_path / "nowhere"), SiteFile("yew", tmp_path)])
    with pytest.raises(BadSite, match="site 'oak': NoduleVolumes has no item"):
        open_sites(nodules(), [SiteFile("oak", tmp_path), SiteFile("yew", tmp_path)])


def test_a_task_of_the_house_reads_no_dataset():
    table = read_table(TINY)
    table["site"] = [{"name": "oak", "tasks": ["T1w->T2w"]}]
    with pytest.raises(
        BadSite, match="site 'oak' was given a dataset, and task \"synthesis\" reads"
    ):
        open_sites(parse_study(table), TWO[:1])


def test_patients_of_two_sites_are_told_in_counts():
    names = [f"MRN-{n}" for n in range(10)]
    sources = [SiteDataset(name, Points(names, seed)) for seed, name in enumerate(("oak", "yew"))]
    ready = {name: data.ready for name, data in open_sites(lines(), sources).items()}
    [note] = [note for note in ready["oak"].notes if "the ID of a patient" in note]
    assert note.startswith("10 patients here have the ID of a patient at yew; ")
    assert "MRN" not in note


def test_the_same_item_of_two_patients_is_told():
    twice = Points([f"MRN-{n}" for n in range(10)])
    twice.points[1] = twice.points[0]
    data = open_sites(lines(), [SiteDataset("oak", twice), TWO[1]])
    [note] = [note for note in data["oak"].ready.notes if "the same images" in note]
    assert note.startswith("2 sessions here")


# Processes.


class Open(Points):
    """A dataset with an open file, which no other process has."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.file = Path(__file__).open("rb")  # noqa: SIM115 - that is the point


def test_a_dataset_that_no_other_process_can_have_is_refused():
    check_processes(lines(), TWO)
    given = Open(["MRN-1", "MRN-2"])
    with (
        given.file,
        pytest.raises(BadSite, match="site 'oak': its dataset cannot be given to work"),
    ):
        check_processes(lines(), [SiteDataset("oak", given)])


def test_a_dataset_or_task_of_this_process_alone_is_refused():
    class Here(Points):
        """Defined in a function, as a notebook's is in __main__."""

    @dataclass(frozen=True)
    class Mine(Line):
        """Defined in a function, too."""

    with pytest.raises(BadSite, match=r"site 'oak': workers are processes that must import .*Here"):
        check_processes(lines(), [SiteDataset("oak", Here(["a", "b"]))])
    with pytest.raises(BadStudy, match=r"must import task\.kind = .*Mine.*, or run in this"):
        check_processes(replace(lines(), task=Mine()), TWO)


def test_the_public_names_are_these():
    assert gr.SupervisedTask is SupervisedTask
    dataset: gr.PatientDataset = Points(["a", "b"])
    assert len(dataset) == 2
