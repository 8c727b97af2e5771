"""First weights come from a file that the study names, and low-rank adapters train beside them."""

from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from grandrounds.core.errors import BadStudy
from grandrounds.inference.export import export_program
from grandrounds.inference.predictor import predictor_for
from grandrounds.inference.trained_model import load_trained_model
from grandrounds.models.imported import Imported, is_adapter
from grandrounds.models.pretrained import _PLACE, look_up_files_in
from grandrounds.runs.costs import estimate, plan_run
from grandrounds.runs.loop import run_study as run
from grandrounds.study.study import Study
from tests.helpers.federation import assert_trained, built, digests, played, stopped
from tests.helpers.outside_networks import HERE, SEGRESNET, outside_study

WIDE: dict[str, Any] = {
    **SEGRESNET,
    "network_options": {"init_filters": 16, "blocks_down": [1, 1], "blocks_up": [1]},
}
ADAPTED = {**WIDE, "adapters": {"rank": 2, "groups": ["encoder", "decoder"]}}
PLAIN = {"network": f"{HERE}:Plain"}


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(_PLACE, "folder", None)
    return tmp_path


def weights_of(study: Study, seed: int) -> dict[str, Tensor]:
    model = study.make_task().build(seed)
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def saved(weights: dict[str, Tensor], name: str = "first.safetensors") -> str:
    """Save weights where the study looks for them, and return their SHA-256."""
    save_file(weights, name)
    return sha256(Path(name).read_bytes()).hexdigest()


def with_file(task: dict[str, Any], sha: str) -> Study:
    named = {"weights": "first.safetensors", "weights_sha256": sha}
    return outside_study("rounds=2", task={**task, **named})


def fixed_of(model: torch.nn.Module) -> dict[str, Tensor]:
    assert isinstance(model, Imported)
    state = model.state_dict().items()
    return {name: tensor.clone() for name, tensor in state if model.is_fixed(name)}


@pytest.mark.parametrize("prefix", ["network.", ""])
def test_first_weights_are_those_of_the_file_under_the_networks_names_or_without_its_prefix(
    prefix: str, tmp_path: Path
):
    weights = weights_of(outside_study(task=PLAIN), 5)
    sha = saved({f"{prefix}{n.removeprefix('network.')}": t for n, t in weights.items()})
    first = built(with_file(PLAIN, sha), tmp_path / "run").start.weights
    assert first
    assert all(torch.equal(tensor, weights[name]) for name, tensor in first.items())


def test_without_its_sha256_a_file_of_weights_is_refused_and_nothing_is_filled_in():
    sha = saved(weights_of(outside_study(task=PLAIN), 5))
    with pytest.raises(BadStudy) as refused:
        outside_study(task={**PLAIN, "weights": "first.safetensors"})
    assert str(refused.value) == (
        'study: task.weights = "first.safetensors" needs task.weights_sha256, so that all sites '
        f'start from the same file; that of the file here is "{sha}"'
    )


def without(name: str, weights: dict[str, Tensor]) -> dict[str, Tensor]:
    return {n: tensor for n, tensor in weights.items() if n != name}


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (
            lambda w: without("network.enter.bias", w),
            "lacks 1 tensor ('enter.bias') of the network",
        ),
        (
            lambda w: {**w, "network.last.bias": torch.ones(1)},
            "has 1 tensor ('last.bias') that the network does not have; its tensors are "
            "called as enter.weight",
        ),
        (
            lambda w: {**w, "network.enter.bias": torch.ones(3)},
            ": 'enter.bias' is (3,); the network has (4,)",
        ),
    ],
)
def test_a_file_of_other_tensors_is_refused_with_their_names(change: Any, sentence: str):
    sha = saved(change(weights_of(outside_study(task=PLAIN), 5)))
    with pytest.raises(BadStudy) as refused:
        plan_run(with_file(PLAIN, sha))
    said = 'task.weights = "first.safetensors"'
    assert str(refused.value) == said + ("" if sentence.startswith(":") else " ") + sentence


def test_a_counter_of_batch_norm_may_be_missing():
    weights = weights_of(outside_study(task=PLAIN), 5)
    sha = saved(without("network.norm.num_batches_tracked", weights))
    plan_run(with_file(PLAIN, sha))


def test_a_file_that_changed_is_refused_wherever_the_model_is_built():
    weights = weights_of(outside_study(task=PLAIN), 5)
    study = with_file(PLAIN, saved(weights))
    other = saved({name: tensor + 1 for name, tensor in weights.items()})
    with pytest.raises(BadStudy, match=f"has the SHA-256 {other}, and task.weights_sha256 is"):
        plan_run(study)


def test_a_site_of_a_federation_has_the_file_in_its_own_folder(tmp_path: Path):
    study = with_file(PLAIN, saved(weights_of(outside_study(task=PLAIN), 5)))
    local = tmp_path / "local"
    local.mkdir()
    Path("first.safetensors").rename(local / "first.safetensors")
    with pytest.raises(BadStudy, match=r"first\.safetensors cannot be read"):
        plan_run(study)
    look_up_files_in(local)
    plan_run(study)


def test_adapters_start_as_the_backbone_to_the_bit():
    image = torch.randn(2, 1, 32, 32, generator=torch.Generator().manual_seed(1))
    plain, adapted = (outside_study(task=t).make_task().build(7).eval() for t in (WIDE, ADAPTED))
    assert torch.equal(plain(image), adapted(image))


def test_with_adapters_what_travels_is_the_adapters_and_what_no_group_freezes():
    plain, adapted = (plan_run(outside_study(task=task)) for task in (WIDE, ADAPTED))
    policy = {group.group: group.policy for group in adapted.policy.groups}
    assert policy == {
        "encoder": "shared",
        "decoder": "shared",
        "head": "shared",
        "adapters": "shared",
        "fixed": "fixed",
    }
    leaving = [name for name in adapted.model.state_dict() if adapted.travels(name)]
    assert all(is_adapter(name) or name.startswith("network.conv_final") for name in leaving)
    assert estimate(plain).bytes_per_round > 6 * estimate(adapted).bytes_per_round


def test_one_round_trains_the_adapters_and_leaves_the_backbone_as_it_was_to_the_bit(
    tmp_path: Path,
):
    federation = built(outside_study("method.kind=scaffold", task=ADAPTED), tmp_path)
    model = federation.sites.sites[0].trainer.model
    before, first = fixed_of(model), federation.start.weights
    [outcome] = played(federation, 1)
    assert_trained(first, outcome.state.weights)
    moved = [n for n, t in outcome.state.weights.items() if not torch.equal(t, first[n])]
    assert [name for name in moved if name.endswith("adapter_up")]
    assert before
    assert all(torch.equal(tensor, before[name]) for name, tensor in fixed_of(model).items())


def test_frozen_batch_norms_count_nothing_and_are_never_reset(tmp_path: Path):
    task = {**PLAIN, "adapters": {"rank": 1}}
    sha = saved(weights_of(outside_study(task=PLAIN), 5) | statistics())
    named = {"weights": "first.safetensors", "weights_sha256": sha}
    study = outside_study("training.norm_buffers=reset", "rounds=1", task={**task, **named})
    federation = built(study, tmp_path / "run")
    played(federation, 1)
    kept = fixed_of(federation.sites.sites[0].trainer.model)
    assert torch.equal(kept["network.norm.running_mean"], statistics()["network.norm.running_mean"])
    assert torch.equal(kept["network.norm.running_var"], statistics()["network.norm.running_var"])


def statistics() -> dict[str, Tensor]:
    ones = torch.ones(4)
    return {"network.norm.running_mean": ones / 2, "network.norm.running_var": ones * 3}


def test_adapters_come_to_the_same_bits_resumed_and_in_two_processes(tmp_path: Path):
    study = outside_study("method.kind=fedper", task=ADAPTED)
    run(study, tmp_path / "one")
    run(study, tmp_path / "two", workers=2)
    stopped(study, tmp_path / "three", lambda event: getattr(event, "round", 0) == 2)
    run(study, tmp_path / "three", resume=True)
    assert len(digests(tmp_path / "one")) == 3
    assert digests(tmp_path / "one") == digests(tmp_path / "two") == digests(tmp_path / "three")


def test_a_model_with_adapters_is_exported(tmp_path: Path):
    run(outside_study("rounds=1", task=ADAPTED), tmp_path / "run")
    trained = load_trained_model(tmp_path / "run", "alder")
    for kind, suffix in (("torch-export", ".pt2"), ("torchscript", ".ts")):
        export_program(predictor_for(trained), kind, tmp_path / f"model{suffix}")


@pytest.mark.parametrize(
    ("adapters", "sentence"),
    [
        ({"rank": 0}, "task.adapters.rank is 0; it must be 1 or more"),
        ({"scale": 0.0}, "task.adapters.scale is 0; it must be above 0"),
        ({"groups": []}, 'task.adapters.groups is empty; for example ["all"]'),
        (
            {"groups": ["tail"]},
            "task.adapters.groups: no group 'tail'; [task.groups] has normal, all",
        ),
        (
            {"groups": ["normal"]},
            "task.adapters.groups: these groups have no linear layer and no convolution, which "
            "alone can have an adapter",
        ),
    ],
)
def test_adapters_that_make_no_sense_are_refused(adapters: dict[str, Any], sentence: str):
    with pytest.raises(BadStudy) as refused:
        outside_study(task={**PLAIN, "groups": {"normal": ["norm"]}, "adapters": adapters})
    assert str(refused.value) == f"study: {sentence}"
