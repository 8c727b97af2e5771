"""A network and a loss from outside are checked, built and grouped before anything trains."""

import tomllib
from typing import Any

import pytest
import torch
from torch import nn

from grandrounds.core.errors import BadStudy
from grandrounds.models.imported import Imported
from grandrounds.runs.costs import estimate, plan_run, workload
from grandrounds.study.checks import notes
from grandrounds.study.file import fingerprint, parse_study, study_schema, to_toml
from grandrounds.study.study import Study
from grandrounds.tasks.outside import Known
from tests.helpers.outside_networks import HERE, SEGRESNET, outside_study, outside_table

NETS = "monai.networks.nets"
PLAIN = {"network": f"{HERE}:Plain"}
TWICE = {"network": f"{HERE}:TwiceNamed"}


def refusal(*overrides: str, kind: str = "segmentation", **task: Any) -> str:
    with pytest.raises(BadStudy) as refused:
        parse_study(outside_table(kind, **task), overrides)
    return str(refused.value).removeprefix("study: ")


def imported(study: Study, seed: int = 1) -> Imported:
    model = study.make_task().build(seed)
    [found] = [module for module in model.modules() if isinstance(module, Imported)]
    return found


def policy(study: Study) -> dict[str, tuple[str, int, int]]:
    groups = plan_run(study).policy.groups
    return {g.group: (g.policy, g.tensors, g.parameters) for g in groups}


def test_a_study_with_a_network_and_a_loss_reads_back_equal():
    options = {**SEGRESNET, "loss": "monai.losses:DiceFocalLoss", "loss_options": {"sigmoid": True}}
    study = outside_study(task=options)
    again = parse_study(tomllib.loads(to_toml(study)))
    assert again == study
    assert fingerprint(again) == fingerprint(study)


def test_options_may_be_of_several_types_and_lists_of_lists():
    deep = {"a": True, "b": 1, "c": 1.0, "d": "x", "e": [1, [2, [3, 0.5]]]}
    study = outside_study(task={"network": f"{HERE}:Open", "network_options": deep})
    options = getattr(study.task, "network_options", {})
    assert repr(options) == repr({**deep, "e": (1, (2, (3, 0.5)))})
    assert parse_study(tomllib.loads(to_toml(study))) == study


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "another shape": (
        {"network_options": {"out_channels": 1}},
        f'task.network = "{NETS}:SegResNet" makes (2, 1, 32, 32) of (2, 1, 32, 32) in training; '
        "the task needs (2, 3, 32, 32)",
    ),
    "another shape in training alone": (
        {"network": f"{HERE}:Shy", "network_options": None, "groups": None},
        f'task.network = "{HERE}:Shy" makes (2, 2, 3, 32, 32) of (2, 1, 32, 32) in training; '
        "the task needs (2, 3, 32, 32)",
    ),
    "a list as output": (
        {"network": f"{NETS}:BasicUNetPlusPlus", "network_options": None, "groups": None},
        "task.network: BasicUNetPlusPlus gives a list, and a task needs one tensor; choose options "
        "with which it gives one",
    ),
    "wrong options": (
        {"network_options": {"init_filter": 8}},
        f'task.network = "{NETS}:SegResNet": refuses its options: SegResNet.__init__() got an '
        "unexpected keyword argument 'init_filter'",
    ),
    "an option of a wrong type": (
        {"network_options": {"act": {"name": "relu"}}},
        "task.network_options.act = {'name': 'relu'} is wrong; it should be a valid boolean, a "
        "valid integer, a valid number, a valid string or a valid array",
    ),
    "no layer": (
        {"groups": {"encoder": ["convinit"]}},
        'task.groups.encoder: no layer starts with "convinit"; the network has convInit, '
        "down_layers, up_layers, up_samples, conv_final",
    ),
    "no layers": (
        {"groups": {"encoder": []}},
        'task.groups.encoder is []; it names layers by how they start, for example ["down_layers"]',
    ),
    "a group's name that is kept": (
        {"groups": {"fixed": ["convInit"]}},
        "task.groups.fixed: this name is kept for task.adapters; choose another",
    ),
    "no module": (
        {"network": "nowhere.nets:A"},
        'task.network = "nowhere.nets:A": there is no module nowhere here; install the package '
        "that has it, or run where the file lies",
    ),
    "something else": (
        {"network": "subprocess:Popen"},
        'task.network = "subprocess:Popen" is no class of torch.nn.modules.module.Module',
    ),
    "something else as a loss": (
        {"loss": "subprocess:Popen"},
        'task.loss = "subprocess:Popen" is no class of torch.nn.modules.module.Module',
    ),
    "a network that must see numbers": (
        {"network": f"{HERE}:Reader", "network_options": None, "groups": None},
        f'task.network = "{HERE}:Reader" fails on (2, 1, 32, 32) in training: RuntimeError: '
        "Tensor.item() cannot be called on meta tensors",
    ),
    "a network without weights": (
        {"network": f"{HERE}:Nothing", "network_options": None, "groups": None},
        f'task.network = "{HERE}:Nothing" has no weights, so nothing to train',
    ),
    "a slash in a name": (
        {"network": f"{HERE}:Slashed", "network_options": None, "groups": None},
        f"task.network = \"{HERE}:Slashed\": 'network.layers.a/b.weight' has a '/', which no name "
        "of a tensor may have",
    ),
    "weights from where a constructor takes them": (
        {"network": f"{NETS}:EfficientNetBN", "network_options": {"pretrained": True}},
        "task.network_options.pretrained would load weights that the study does not name; put them "
        "into a file, and say task.weights and task.weights_sha256",
    ),
    "options of the task's own network": (
        {"channels": [4, 8]},
        f'task.channels would do nothing: task.network = "{NETS}:SegResNet" takes the place of the '
        "task's own network",
    ),
    "a loss of several numbers": (
        {"loss": "monai.losses:DiceLoss", "loss_options": {"reduction": "none"}},
        'task.loss = "monai.losses:DiceLoss" gives (1, 3, 1, 1), and training needs one number; '
        "choose options with which it gives one",
    ),
    "a loss that is none": (
        {"loss": "torch.nn:ReLU"},
        'task.loss = "torch.nn:ReLU" fails on output and target of (2, 3, 32, 32): '
        "ReLU.forward() takes 2 positional arguments but 3 were given",
    ),
    "a loss with weights": (
        {"loss": f"{HERE}:Weighed"},
        f'task.loss = "{HERE}:Weighed" has weights of its own, which nobody would train',
    ),
    "a loss without a gradient": (
        {"loss": f"{HERE}:Counting"},
        f'task.loss = "{HERE}:Counting" gives a number without a gradient; no network can be '
        "trained on it",
    ),
    "a loss's wrong options": (
        {"loss": "monai.losses:DiceLoss", "loss_options": {"sigmod": True}},
        'task.loss = "monai.losses:DiceLoss": refuses its options: DiceLoss.__init__() got an '
        "unexpected keyword argument 'sigmod'",
    ),
}


@pytest.mark.parametrize("found", REFUSED)
def test_what_cannot_be_trained_is_refused_before_anything_trains(found: str):
    task, sentence = REFUSED[found]
    given = {name: value for name, value in {**SEGRESNET, **task}.items() if value is not None}
    assert refusal(**given) == sentence


@pytest.mark.parametrize(
    ("option", "value", "needs"),
    [
        ("network_options", {"a": 1}, "network"),
        ("groups", {"a": ["b"]}, "network"),
        ("weights", "a.safetensors", "network"),
        ("adapters", {"rank": 2}, "network"),
        ("loss_options", {"a": 1}, "loss"),
        ("weights_sha256", "0" * 64, "weights"),
    ],
)
def test_an_option_without_what_it_is_for_is_refused(option: str, value: Any, needs: str):
    sentence = f"task.{option} would do nothing: the study has no task.{needs}"
    assert refusal(**{option: value}) == sentence


def test_a_network_from_outside_cannot_be_cut():
    assert refusal("topology.kind=split", **SEGRESNET) == (
        f'topology "split" cannot cut task.network = "{NETS}:SegResNet": only the built-in '
        "networks are laid out in stages; choose another topology"
    )


@pytest.mark.parametrize(
    "override", ["task.generator=unet", "method.kind=pflsynth", "task.pairing=unpaired"]
)
def test_in_synthesis_a_network_takes_the_place_of_the_plain_generator_alone(override: str):
    assert refusal(override, kind="synthesis", **PLAIN) == (
        'task.network takes the place of task.generator = "plain" with task.pairing = "paired"; '
        "the other generators are built for their methods"
    )


def test_in_synthesis_options_of_the_own_generator_are_refused():
    assert "task.width would do nothing" in refusal("task.width=8", kind="synthesis", **PLAIN)
    outside_study(kind="synthesis", task={**PLAIN, "model": "small"})


def test_running_statistics_are_looked_for_in_the_network():
    assert refusal("training.norm_buffers=reset", **SEGRESNET) == (
        f'training.norm_buffers = "reset" would do nothing: task.network = "{NETS}:SegResNet" '
        "keeps no running statistics. Remove it."
    )
    outside_study("training.norm_buffers=reset", task=PLAIN)
    kept = "fedbn keeps no layer at a site: the network has no batch norm"
    assert kept in notes(outside_study("method.kind=fedbn"))
    assert kept not in notes(outside_study("method.kind=fedbn", task=PLAIN))


def test_a_constructor_is_told_what_the_task_knows_unless_the_study_says_it():
    known = Known(3, 2, 5, (16, 32, 32)).arguments
    assert known(["spatial_dims", "n_input_channels", "num_classes", "img_size", "act"]) == {
        "spatial_dims": 3,
        "n_input_channels": 2,
        "num_classes": 5,
        "img_size": (16, 32, 32),
    }
    assert known(["image_size"]) == {}
    assert Known(2, 1, 1, (32, 32)).arguments(["image_size", "pretrained"]) == {
        "image_size": 32,
        "pretrained": False,
    }
    wide = {**PLAIN, "network_options": {"width": 6}}
    for task, width in ((PLAIN, 4), (wide, 6)):
        entry = imported(outside_study(task=task)).network.get_parameter("enter.weight")
        assert entry.shape == (width, 1, 3, 3)


def test_first_weights_depend_on_the_seed_alone_and_the_global_generator_is_left_as_it_was():
    study = outside_study()
    state = torch.get_rng_state()
    first = imported(study).state_dict()
    assert torch.equal(torch.get_rng_state(), state)
    torch.rand(3)
    again, other = imported(study).state_dict(), imported(study, 2).state_dict()
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert any(not torch.equal(first[name], other[name]) for name in first)


def test_tensors_are_named_after_the_network():
    names = list(imported(outside_study(task=PLAIN)).state_dict())
    assert names[:3] == ["network.enter.weight", "network.enter.bias", "network.norm.weight"]


def test_the_policy_lists_norm_the_last_layer_and_named_groups_and_what_is_left():
    assert policy(outside_study(task=PLAIN)) == {
        "body": ("shared", 4, 48),
        "output": ("shared", 2, 15),
        "norm": ("shared", 2, 8),
        "running statistics": ("shared", 2, 8),
    }
    named = {**PLAIN, "groups": {"front": ["enter", "norm"]}}
    assert policy(outside_study("method.kind=fedper", task=named)) == {
        "output": ("private", 2, 15),
        "norm": ("shared", 2, 8),
        "front": ("shared", 4, 48),
        "running statistics": ("shared", 2, 8),
    }
    assert list(policy(outside_study("method.kind=fedrep"))) == ["head", "encoder", "decoder"]


def test_a_group_may_be_named_anew():
    named = {**PLAIN, "groups": {"head": ["norm", "leave"]}}
    assert policy(outside_study("method.kind=fedper", task=named))["head"] == ("private", 4, 23)


def test_the_upper_half_is_the_later_half_of_the_layers():
    study = outside_study(task=PLAIN)
    task, model = study.make_task(), imported(study)
    upper = task.groups(model)["upper"]
    held = [name for name, _ in model.named_parameters() if upper(name)]
    both = ("weight", "bias")
    assert held == [f"network.{layer}.{kind}" for layer in ("norm", "leave") for kind in both]


def test_a_layer_of_two_names_travels_once_and_a_private_head_by_neither():
    study = outside_study("method.kind=fedper", task=TWICE)
    model, plan = imported(study), plan_run(study)
    assert "network.again.0.weight" in nn.Module.state_dict(model.network, prefix="network.")
    assert not [name for name in model.state_dict() if "again" in name]
    assert plan.travels("network.enter.weight")
    assert not plan.travels("network.leave.weight")
    assert (
        plan.policy.bytes_per_round
        == plan_run(outside_study("method.kind=fedper", task=PLAIN)).policy.bytes_per_round
    )


def test_whole_numbers_never_travel():
    plan = plan_run(outside_study(task=PLAIN))
    assert plan.travels("network.norm.running_mean")
    assert not plan.travels("network.norm.num_batches_tracked")


def test_what_a_study_costs_is_counted_without_numbers():
    plan = plan_run(outside_study(task=PLAIN))
    work, cost = workload(plan), estimate(plan)
    assert work.parameters == 63
    pixels = 4 * 32 * 32  # of a batch; 36 + 12 products each, and twice as many backwards
    assert work.flops_per_step == 2 * pixels * (36 * 2 + 12 * 3)
    assert 4 * pixels * 4 < cost.activations < 40 * pixels * 4


def test_a_site_teaches_nothing_about_structures_that_it_is_not_asked_for():
    loss = {"loss": "monai.losses:DiceLoss", "loss_options": {"sigmoid": True}}
    task = outside_study(task={**PLAIN, **loss}).make_task()
    output = torch.randn(2, 3, 8, 8, requires_grad=True)
    asked = torch.tensor([[1.0, 0.0, 1.0], [1.0, 1.0, 1.0]])
    batch = {"target": torch.ones(2, 3, 8, 8), "asked": asked}
    [(part, found)] = task.losses_of_output(nn.Module(), output, batch)
    found.backward()
    assert part == "network"
    assert output.grad is not None
    assert not output.grad[0, 1].any()
    assert output.grad[1, 1].any()


def test_in_synthesis_a_loss_takes_the_place_of_the_distance_beside_the_critics():
    task = {**PLAIN, "model": "small", "l1": 10.0}
    totals: dict[str, float] = {}
    for word in ("torch.nn:L1Loss", "torch.nn:MSELoss", ""):
        chosen = outside_study(kind="synthesis", task={**task, "loss": word} if word else task)
        bound = chosen.make_task()
        model = bound.build(1)
        batch = bound.blank((32, 32))
        batch["target"] = torch.full_like(batch["target"], 0.5)
        totals[word] = {n: float(loss.detach()) for n, loss in bound.losses(model, batch)}[
            "generator"
        ]
    assert totals["torch.nn:L1Loss"] == pytest.approx(totals[""], rel=1e-6)
    assert totals["torch.nn:MSELoss"] != totals[""]


def test_the_schema_describes_what_comes_from_outside():
    definitions = study_schema()["$defs"]
    for kind in ("Segmentation", "Classification", "Synthesis"):
        assert {"network", "loss_options", "groups", "adapters"} <= set(
            definitions[kind]["properties"]
        )
    assert set(definitions["Adapters"]["properties"]) == {"rank", "scale", "groups"}
