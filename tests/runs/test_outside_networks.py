"""Networks of MONAI train at two tiny sites, or are refused with a sentence."""

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch

from grandrounds.core.errors import BadStudy
from grandrounds.core.weights import read
from grandrounds.inference.export import export_program
from grandrounds.inference.monai_bundle import export_bundle
from grandrounds.inference.predictor import predictor_for
from grandrounds.inference.trained_model import load_trained_model
from grandrounds.runs.loop import run_study as run
from grandrounds.study.study import Study
from tests.helpers.federation import assert_trained, built, digests, model_of, played, stopped
from tests.helpers.grids import with_representatives
from tests.helpers.outside_networks import HERE, outside_study, over

NETS = "monai.networks.nets"
TUPLE = "gives a tuple, and a task needs one tensor"
LIST = "gives a list, and a task needs one tensor"
NEEDS_EINOPS = ("SwinUNETR", "UNETR", "ViT")  # which MONAI leaves to its user to install
OF_CLASSES = "the task needs (2, 3, 32, 32, 32)"
OPTIONS: dict[str, dict[str, Any]] = {
    "SegResNet": {"blocks_down": [1, 1], "blocks_up": [1]},
    "SwinUNETR": {"feature_size": 12, "depths": [1, 1, 1, 1]},
    "AttentionUnet": {"channels": [4, 8], "strides": [2]},
    "DynUNet": {
        "kernel_size": [3, 3, 3],
        "strides": [1, 2, 2],
        "upsample_kernel_size": [2, 2],
        "filters": [4, 8, 16],
        "norm_name": "instance",
    },
    "UNETR": {"hidden_size": 24, "mlp_dim": 32, "num_heads": 2, "feature_size": 4},
    "BasicUNetPlusPlus": {"features": [4, 4, 8, 16, 32, 4]},
    "DenseNet": {"init_features": 8, "growth_rate": 4, "block_config": [2, 2]},
    "EfficientNetBN": {"model_name": "efficientnet-b0"},
    "ViT": {"patch_size": 16, "hidden_size": 24, "mlp_dim": 32, "num_layers": 1, "num_heads": 2},
    "VNet": {},
}
CLASSIFIERS = ("DenseNet", "EfficientNetBN", "ViT")
REFUSED = {
    **{f"BasicUNetPlusPlus {dims}-D": LIST for dims in (2, 3)},
    **{f"ViT {dims}-D": TUPLE for dims in (2, 3)},
    **{f"{name} 3-D": OF_CLASSES for name in ("DenseNet", "EfficientNetBN")},
}
GRID = [f"{name} {dims}-D" for name in OPTIONS for dims in (2, 3)]


def study_of(case: str) -> Study:
    """One round of a network for slices, or for patches; classifiers are for slices alone."""
    name, _, dims = case.partition(" ")
    swin = name == "SwinUNETR"  # halves its input five times
    task: dict[str, Any] = {"network": f"{NETS}:{name}", "network_options": OPTIONS[name]}
    side = 64 if swin else 32
    overrides = ["rounds=1", f"elements.size=[{side}, {side}]", "training.batch_size=2"]
    if dims == "3-D":
        patch = f"task.patch=[{side}, {side}, {side}]"
        return outside_study(*overrides, "task.dims=3", patch, task=task)
    kind = "classification" if name in CLASSIFIERS else "segmentation"
    return outside_study(*overrides, kind=kind, task=task)


@pytest.mark.parametrize("case", with_representatives(GRID, ("DynUNet 2-D", "DenseNet 2-D")))
def test_a_network_of_monai_trains_a_round_or_is_refused_with_a_sentence(case: str, tmp_path: Path):
    if case.startswith(NEEDS_EINOPS) and not find_spec("einops"):
        with pytest.raises(BadStudy, match=r"needs a package that is not installed here.*einops"):
            study_of(case)
        return
    if case in REFUSED:
        with pytest.raises(BadStudy) as refused:
            study_of(case)
        assert REFUSED[case] in str(refused.value)
        return
    federation = built(study_of(case), tmp_path)
    first = federation.start.weights
    [outcome] = played(federation, 1)
    assert_trained(first, outcome.state.weights)


def test_a_network_from_outside_comes_to_the_same_bits_in_two_processes_and_resumed(
    tmp_path: Path,
):
    study = outside_study("method.kind=fedrep", "task.loss=monai.losses:DiceFocalLoss")
    run(study, tmp_path / "one")
    run(study, tmp_path / "two", workers=2)
    stopped(study, tmp_path / "three", lambda event: getattr(event, "round", 0) == 2)
    run(study, tmp_path / "three", resume=True)
    assert len(digests(tmp_path / "one")) == 3
    assert digests(tmp_path / "one") == digests(tmp_path / "two") == digests(tmp_path / "three")


def test_a_private_head_of_two_names_differs_between_sites_and_what_is_shared_does_not(
    tmp_path: Path,
):
    study = over(outside_study("method.kind=fedper", task={"network": f"{HERE}:TwiceNamed"}), 1)
    federation = built(study, tmp_path)
    [outcome] = played(federation, 1)
    assert not [name for name in outcome.state.weights if "leave" in name or "again" in name]
    alder, birch = (model_of(site, outcome.state) for site in federation.sites.sites)
    assert torch.equal(alder["network.enter.weight"], birch["network.enter.weight"])
    assert not torch.equal(alder["network.leave.weight"], birch["network.leave.weight"])


def test_synthesis_trains_a_network_from_outside_beside_its_critics(tmp_path: Path):
    task = {"network": f"{HERE}:Plain", "model": "small", "loss": "torch.nn:SmoothL1Loss"}
    run(outside_study("rounds=1", kind="synthesis", task=task), tmp_path / "run")
    shared, _ = read(tmp_path / "run" / "model" / "shared.safetensors")
    assert [name for name in shared if name.startswith("generator.network.enter.")]
    private, _ = read(tmp_path / "run" / "sites" / "alder" / "private.safetensors")
    assert [name for name in private if name.startswith("critics.")]
    predictor = predictor_for(load_trained_model(tmp_path / "run", "alder"))
    assert export_program(predictor, "torchscript", tmp_path / "model.ts") < 1e-4
    assert export_bundle(predictor, tmp_path / "bundle") < 1e-4
