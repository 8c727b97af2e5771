"""The law of a refactoring: equal weights to the bit, for every method over every topology.

`pytest tests/golden --rewrite-golden` writes the digests of this platform anew, and keeps those of
others; a commit that does so says why.
"""

import json
import platform
from pathlib import Path
from typing import TypedDict

import pytest
import torch

from grandrounds.algorithms import METHODS, TOPOLOGIES
from grandrounds.core.errors import BadStudy
from grandrounds.runs.loop import run_study as run
from tests.helpers.federation import assert_trained, built, digests, tiny
from tests.helpers.grids import with_representatives
from tests.helpers.task_studies import tiny_of

BF16 = ("amx_bf16", "avx512_bf16")  # each has kernels of its own
STORED = Path(__file__).with_name("digests.json")
OPTIONS: dict[str, tuple[str, ...]] = {
    "fedbn": ("task.norm=batch",),
    "fedbadam": ("task.norm=batch",),
    "split": ("topology.cut=encoder.2",),
}
SPLIT = ("method.kind=fedavg", "topology.kind=split", "topology.cut=encoder.2")
# Options that deserve their own digests, beside every method over every topology.
FURTHER: dict[str, tuple[str, ...]] = {
    "pflsynth-wide": ("method.kind=pflsynth", "method.split=wide"),
    "fedyogi": ("method.kind=fedopt", "method.server=yogi"),
    "median": ("method.kind=fedavg", "aggregation.kind=median"),
    "sgd": ("method.kind=fedavg", "training.optimizer=sgd", "training.momentum=0.9"),
    "lg_fedavg@split": (
        "method.kind=lg_fedavg",
        "topology.kind=split",
        "topology.cut=bottleneck_late.0",
    ),
    "splitfed1": (*SPLIT, "topology.variant=splitfed1"),
    "splitfed2": (*SPLIT, "topology.variant=splitfed2"),
    "relay-sites": (
        *("method.kind=pflsynth", "topology.kind=relay"),
        *("topology.groups=2", "topology.handover=sites"),
    ),
    "measured": ("method.kind=fedavg", "aggregation.rate=measured"),
    "cyclic-travels": (
        *("method.kind=fedavg", "topology.kind=cyclic"),
        *("topology.order=shuffled", "topology.optimizer=travels"),
    ),
}


def overrides(method: str, topology: str) -> tuple[str, ...]:
    """What the tiny study needs for a pair."""
    own = (*OPTIONS.get(method, ()), *OPTIONS.get(topology, ()))
    return (f"method.kind={method}", f"topology.kind={topology}", *own)


def is_allowed(method: str, topology: str) -> bool:
    try:
        tiny(*overrides(method, topology))
    except BadStudy:
        return False
    return True


PAIRS = [(m, t) for m in METHODS for t in TOPOLOGIES if is_allowed(m, t)]
ARMS = {m if t == "star" else f"{m}@{t}": overrides(m, t) for m, t in PAIRS} | FURTHER
TASKS: dict[str, tuple[str, ...]] = dict.fromkeys(
    ("segmentation", "classification"), ("method.kind=fedavg",)
)

REPRESENTATIVES = (  # each topology, each family of methods, each task
    *("fedavg", "fedopt", "fedbn", "scaffold", "fedrep", "ditto", "pflsynth", "local", "central"),
    *("fedmri", "fedmedgan", "pflsynth@swarm", "cyclic-travels", "fedavg@split", "splitfed2"),
    *("fedavg@relay", "relay-sites", "measured"),
    *TASKS,
)


class Golden(TypedDict):
    """The digests of one platform."""

    platform: dict[str, str]
    digests: dict[str, list[str]]


def here() -> dict[str, str]:
    """What decides the last bit of a sum besides the study."""
    return {
        "torch": torch.__version__,
        "machine": platform.machine(),
        "cpu": torch.backends.cpu.get_cpu_capability(),
        "precision": tiny().training.machine().precision_name,
        "bf16": " ".join(sorted(name for name in BF16 if torch.cpu.get_capabilities().get(name))),
    }


def stored() -> list[Golden]:
    return json.loads(STORED.read_text())


def known_here() -> dict[str, list[str]]:
    """The digests that are stored for this platform."""
    return next((each["digests"] for each in stored() if each["platform"] == here()), {})


def store(arm: str, found: list[str]) -> None:
    """Keep the digests of one arm on this platform."""
    others = [each for each in stored() if each["platform"] != here()]
    arms = {**known_here(), arm: found}
    ordered = {name: arms[name] for name in (*ARMS, *TASKS) if name in arms}
    whole = [*others, Golden(platform=here(), digests=ordered)]
    STORED.write_text(json.dumps(whole, indent=2) + "\n")


@pytest.mark.slow
@pytest.mark.parametrize("arm", with_representatives([*ARMS, *TASKS], REPRESENTATIVES))
def test_weights_are_the_same_to_the_bit_as_ever(
    arm: str, tmp_path: Path, request: pytest.FixtureRequest
):
    rewrite = bool(request.config.getoption("--rewrite-golden"))
    if not rewrite and arm not in known_here():
        pytest.skip(f"no golden digests of '{arm}' on this platform, {here()}")
    study = tiny(*ARMS[arm]) if arm in ARMS else tiny_of(arm, *TASKS[arm])
    state = run(study, tmp_path / "run")
    found = list(digests(tmp_path / "run"))
    if state.weights:
        assert_trained(built(study, tmp_path / "start").start.weights, state.weights)
    assert len(set(found)) == study.rounds == 3
    if rewrite:
        store(arm, found)
        return
    assert found == known_here()[arm]


def test_every_arm_has_its_golden_digests_on_one_platform_at_least():
    complete = [each for each in stored() if set(each["digests"]) >= {*ARMS, *TASKS}]
    assert complete


def test_star_and_swarm_have_the_same_golden_digests():
    """Row 2 of the identities, once more, for every method that goes over both."""
    pairs = [(m, f"{m}@swarm") for m in METHODS if f"{m}@swarm" in ARMS]
    assert len(pairs) >= 11
    for each in stored():
        for star, swarm in pairs:
            if swarm in each["digests"]:
                assert each["digests"][star] == each["digests"][swarm]
