"""A study is a value: from a file, an example, a table or a study, with changes, and back."""

import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from torch import nn

from grandrounds import Method, load, save
from grandrounds.algorithms import METHODS
from grandrounds.algorithms.aggregation import Aggregation, Averaging
from grandrounds.algorithms.methods.fedopt import FedOpt
from grandrounds.algorithms.methods.fedprox import FedProx
from grandrounds.algorithms.methods.mrmtl import MRMTL
from grandrounds.algorithms.methods.pflsynth import PFLSynth
from grandrounds.algorithms.relay import Relay
from grandrounds.api.study import arm_label, check_workers
from grandrounds.core.errors import BadStudy
from grandrounds.site.training import Training
from grandrounds.study.file import (
    example,
    fingerprint,
    parse_study,
    read_study,
    read_table,
    to_table,
)
from grandrounds.study.study import Choice, Stop
from grandrounds.tasks import Segmentation, Synthesis
from tests.helpers.federation import TINY, tiny

EXAMPLES = sorted(path.stem for path in TINY.parent.glob("*.toml"))


@dataclass(frozen=True)
class Mine(Method):
    """Mine."""

    rate: float = 0.5
    word: str = "a"
    on: bool = False
    share: tuple[str, ...] = ()


def here(name: str) -> str:
    return f"{__name__}:{name}"


@pytest.mark.parametrize("name", EXAMPLES)
def test_an_example_is_loaded_by_its_name_by_its_path_and_as_a_study(name: str):
    study = load(name)
    assert study == load(example(name)) == load(str(example(name))) == read_study(example(name))
    assert load(study) == study
    assert fingerprint(load(study)) == fingerprint(study)


@pytest.mark.parametrize("name", EXAMPLES)
def test_a_study_that_is_saved_is_loaded_as_it_was(name: str, tmp_path: Path):
    study = load(name, seed=12)
    save(study, tmp_path / "new" / "study.toml")
    assert load(tmp_path / "new" / "study.toml") == study


def test_a_table_is_a_source():
    assert load(read_table(TINY)) == load("tiny")
    objects = read_table(TINY) | {"method": MRMTL(strength=0.3), "training": Training(epochs=2)}
    assert load(objects).method == Choice("mrmtl", {"strength": 0.3})


def test_a_change_of_a_study_is_as_in_its_file():
    study = load("tiny", rounds=2, training={"epochs": 2})
    assert study == tiny("rounds=2", "training.epochs=2")
    assert load(load("tiny"), rounds=2, training={"epochs": 2}) == study


@pytest.mark.parametrize("method", ["fedavg", "fedbn", "fedmri", "local", "pflsynth"])
@pytest.mark.parametrize("of", ["tiny", "demo"])
def test_what_a_study_leaves_to_its_method_follows_the_method(method: str, of: str):
    assert load(load(of), method=method) == load(of, method=method)


def test_what_a_study_says_of_its_network_stays_when_the_method_changes():
    study = load("tiny", method="fedprox", task={"generator": "unet", "norm": "batch"})
    task = load(study, method="fedavg").task
    assert isinstance(task, Synthesis)
    assert (task.generator, task.norm, task.width) == ("unet", "batch", 8)


UNET: dict[str, object] = {"network": "monai.networks.nets:BasicUNet"}
SHALLOW: dict[str, object] = {"block_config": [2, 2]}  # for slices of 28 x 28
DENSE: dict[str, object] = {"network": "monai.networks.nets:DenseNet", "network_options": SHALLOW}


@pytest.mark.parametrize(
    ("of", "task", "gone", "stays"),
    [
        ("segmentation", UNET, "model", "flip"),
        ("tiny", UNET, "blocks", "critic_width"),
        ("xray", DENSE, "width", "flip"),
        ("xray", {"loss": "torch.nn:BCEWithLogitsLoss"}, "positive_weight", "width"),
    ],
)
def test_what_a_study_says_of_its_own_network_or_loss_goes_with_it(
    of: str, task: dict[str, object], gone: str, stays: str
):
    more = {"positive_weight": 2.0} if gone == "positive_weight" else {}
    before = load(of, method="fedavg", task=more)
    after = load(before, task=task)
    assert load(after) == after
    assert getattr(after.task, stays) == getattr(before.task, stays)
    assert getattr(after.task, gone) != getattr(before.task, gone)
    with pytest.raises(BadStudy, match=rf"task\.{gone} would do nothing"):
        load(before, task={**task, gone: getattr(before.task, gone)})


def test_another_size_brings_its_own_numbers():
    full = load("demo", task={"model": "full"})
    assert load(load("demo"), task={"model": "full"}) == full
    assert full.task != load("demo").task


def test_parity_can_be_switched_on_and_off():
    unsaid = {"device": "cpu", "batch_size": None}
    study = load("tiny", training=unsaid)
    there = load(study, parity=True)
    assert there == load("tiny", training=unsaid, parity=True)
    assert there.training.batch_size == 1
    assert load(there, parity=False) == study


@pytest.mark.parametrize(
    "method",
    [MRMTL(strength=0.3), {"kind": MRMTL, "strength": 0.3}, Choice("mrmtl", {"strength": 0.3})],
)
def test_a_method_is_an_instance_a_table_with_a_class_or_a_choice(method: object):
    assert load("tiny", method=method).method == Choice("mrmtl", {"strength": 0.3})
    assert load(load("tiny"), method=method).method == Choice("mrmtl", {"strength": 0.3})


@pytest.mark.parametrize("name", METHODS)
def test_every_method_of_the_house_is_its_word(name: str):
    table = load("tiny", method={"kind": name}) if name in ("fedavg", "mrmtl", "fedopt") else None
    assert arm_label("", METHODS[name]) == name
    assert arm_label("", METHODS[name]()) == name
    if table:
        assert load("tiny", method=METHODS[name]) == load("tiny", method=name) == table


def test_a_word_a_class_and_an_instance_take_no_option_over_from_before():
    before = load("tiny", method=FedProx(mu=0.7))
    for method in ("fedprox", FedProx, FedProx()):
        assert load(before, method=method).method.options == {"mu": FedProx().mu}
    assert load(before, method={"kind": "fedprox"}).method.options == {"mu": 0.7}
    assert load(before, method={"mu": 0.2}).method.options == {"mu": 0.2}
    assert load(before, method={"kind": "mrmtl"}).method == load("tiny", method="mrmtl").method


def test_ones_own_method_is_an_address():
    study = load("tiny", method=Mine(rate=0.25, share=("all",)))
    assert study.method.kind == here("Mine")
    assert study.method.options["rate"] == 0.25
    method = study.build_method()
    assert isinstance(method, Mine)
    assert (method.rate, method.word, method.share) == (0.25, "a", ("all",))


def test_a_topology_and_sections_are_objects_too():
    study = load("tiny", topology=Relay(groups=4), training=Training(epochs=3), stop=Stop(2))
    assert study.topology.kind == "relay"
    assert study.topology.options["groups"] == 4
    assert (study.training, study.stop) == (Training(epochs=3), Stop(2))
    assert load(study, topology="star", aggregation="median").aggregation.kind == "median"


def test_a_list_of_sites_may_have_objects():
    study = load("tiny")
    assert load(study, site=study.site[:2]) == replace(study, site=study.site[:2])


def test_a_task_is_an_instance_or_a_class():
    study = load("segmentation")
    other = load(study, task=Segmentation(channels=(8, 16), norm="batch"))
    assert other.task == Segmentation(channels=(8, 16), norm="batch")
    assert load(study, task=Segmentation).task == Segmentation()
    assert load(study, task=study.task) == study


def test_none_takes_an_option_back():
    study = load("tiny", training={"epochs": 7, "threads": 3}, rounds=9)
    again = load(study, training={"epochs": None}, rounds=None)
    assert (again.training.epochs, again.training.threads) == (Training().epochs, 3)
    assert again.rounds == parse_study({**to_table(study), "rounds": 30}).rounds


def test_a_class_in_a_table_is_its_address():
    with pytest.raises(BadStudy, match=r"torch\.nn\.modules\.linear:Linear"):
        load("tiny", method={"kind": nn.Linear})


def made_in_a_function() -> type[Method]:
    @dataclass(frozen=True)
    class Within(Method):
        """Within."""

    return Within


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"round": 2}, "study 'tiny': unknown key 'round'; did you mean 'rounds'?"),
        ({"rounds": 0}, "study 'tiny': rounds is 0; it must be 1 or more"),
        (
            {"training": {"epoch": 2}},
            "study 'tiny': unknown key 'training.epoch'; did you mean 'epochs'?",
        ),
        (
            {"task": {"network": nn.Linear(1, 1)}},
            "task.network is an object of torch.nn.modules.linear.Linear, which no study file can "
            "hold; give a class here, and its options as values",
        ),
        (
            {"method": MRMTL(averaging=Averaging(Aggregation("median")))},
            "method.averaging would do nothing: a run fills it in, as the rest of the study says",
        ),
        (
            {"method": made_in_a_function()},
            f'method: "{here("made_in_a_function.<locals>.Within")}" is defined in a function, '
            "where no study can name it; move it to the top of a module, or of a notebook's cell",
        ),
    ],
)
def test_a_wrong_change_is_refused_with_a_sentence(changes: dict[str, Any], sentence: str):
    with pytest.raises(BadStudy) as refused:
        load(load("tiny"), **changes)
    assert str(refused.value) == sentence


def test_a_name_that_is_no_example_is_refused():
    with pytest.raises(BadStudy) as refused:
        load("tinny")
    assert str(refused.value) == (
        "'tinny' is neither a study file nor an example; did you mean 'tiny'?"
    )
    with pytest.raises(BadStudy, match=r"cannot be read as a study file"):
        load(Path("tinny"))


def test_a_wrong_study_is_not_saved(tmp_path: Path):
    with pytest.raises(BadStudy, match="rounds is 0"):
        save(replace(load("tiny"), rounds=0), tmp_path / "study.toml")
    assert not (tmp_path / "study.toml").exists()


@pytest.fixture
def by_hand(monkeypatch: pytest.MonkeyPatch) -> type[Method]:
    """A class that a cell of a notebook has defined."""
    main = sys.modules["__main__"]
    made = dataclass(frozen=True)(
        type("ByHand", (Method,), {"__module__": "__main__", "__doc__": "By hand."})
    )
    monkeypatch.setattr(main, "ByHand", made, raising=False)
    monkeypatch.delattr(main, "__file__", raising=False)
    return made


def test_a_class_of_a_notebook_trains_in_this_process_alone(by_hand: type[Method]):
    study = load("tiny", method=by_hand)
    assert isinstance(study.build_method(), by_hand)
    check_workers(study, 1)
    with pytest.raises(BadStudy) as refused:
        check_workers(study, 2)
    assert str(refused.value) == (
        'workers = 2 are processes that must import "__main__:ByHand", which is defined in this '
        "notebook; move it into a module beside the notebook, or use workers = 1"
    )


def test_a_class_of_a_notebook_is_not_saved(by_hand: type[Method], tmp_path: Path):
    with pytest.raises(BadStudy) as refused:
        save(load("tiny", method=by_hand), tmp_path / "a.toml")
    assert str(refused.value) == (
        f'{tmp_path}/a.toml: a study file names what others can import, and "__main__:ByHand" is '
        "defined in this notebook; move it into a module beside the notebook"
    )
    within = replace(load("tiny"), method=Choice("mine:make.<locals>.A"))
    with pytest.raises(BadStudy, match="is defined in a function; move it to the top of a module"):
        save(within, tmp_path / "a.toml")
    assert not list(tmp_path.iterdir())


def test_a_method_is_written_as_an_arm_with_what_differs_from_its_defaults():
    labels = {
        "fedprox:mu=0.1": "fedprox:mu=0.1",
        "mrmtl": MRMTL,
        "mrmtl:strength=0.3": MRMTL(strength=0.3),
        "fedopt:server=yogi": FedOpt("yogi"),
        "pflsynth:share=['mapper', 'norm']": PFLSynth(share=("mapper", "norm")),
        f'{here("Mine")}:word="1 2":on=true': Mine(word="1 2", on=True),
        f'{here("Mine")}:word="true"': Mine(word="true"),
    }
    assert [arm_label("", method) for method in labels.values()] == list(labels)


def test_what_is_no_method_is_no_arm():
    with pytest.raises(BadStudy) as refused:
        arm_label("methods[1]", 3)
    assert str(refused.value) == (
        "methods[1] is an object of builtins.int; give a word, a class of methods, or one of its "
        "instances"
    )
