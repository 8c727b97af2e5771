"""The law of a refactoring: equal weights to the bit, for every method, after every round.

`pytest tests/golden --rewrite-golden` writes the digests anew; a commit that does so says why.
"""

import json
import platform
from pathlib import Path

import pytest
import torch

from grandrounds.machine import machine_for
from grandrounds.run import run
from tests.federation import assert_trained, built, digests, tiny

BF16 = ("amx_bf16", "avx512_bf16")  # each has kernels of its own
STORED = Path(__file__).with_name("digests.json")
ARMS: dict[str, tuple[str, ...]] = {
    "fedavg": ("method.kind=fedavg",),
    "fedbn": ("method.kind=fedbn", "task.norm=batch"),
    "pflsynth": ("method.kind=pflsynth", "method.split=paper"),
    "pflsynth-wide": ("method.kind=pflsynth", "method.split=wide"),
    "local": ("method.kind=local",),
    "central": ("method.kind=central",),
}


def here() -> dict[str, str]:
    """What decides the last bit of a sum besides the study."""
    return {
        "torch": torch.__version__,
        "machine": platform.machine(),
        "cpu": torch.backends.cpu.get_cpu_capability(),
        "precision": machine_for(tiny().training).precision_name,
        "bf16": " ".join(sorted(name for name in BF16 if torch.cpu.get_capabilities().get(name))),
    }


def stored() -> dict[str, dict[str, object]]:
    return json.loads(STORED.read_text()) if STORED.exists() else {}


def store(arm: str, found: list[str]) -> None:
    """Keep the digests of one arm; those of another platform go."""
    kept = stored() if stored().get("platform") == here() else {}
    arms = {**kept.get("digests", {}), arm: found}
    whole = {"platform": here(), "digests": {name: arms[name] for name in ARMS if name in arms}}
    STORED.write_text(json.dumps(whole, indent=2) + "\n")


@pytest.mark.slow
@pytest.mark.parametrize("arm", ARMS)
def test_weights_are_the_same_to_the_bit_as_ever(
    arm: str, tmp_path: Path, request: pytest.FixtureRequest
):
    rewrite = bool(request.config.getoption("--rewrite-golden"))
    known = stored()
    if not rewrite and known.get("platform") != here():
        pytest.skip(f"golden digests are of {known.get('platform')}; this is {here()}")
    study = tiny(*ARMS[arm])
    state = run(study, tmp_path / "run")
    found = list(digests(tmp_path / "run"))
    if state.weights:
        assert_trained(built(study, tmp_path / "start").start.weights, state.weights)
    assert len(set(found)) == study.rounds == 3
    if rewrite:
        store(arm, found)
        return
    assert found == known["digests"][arm]


def test_every_arm_has_its_golden_digests():
    assert list(stored()["digests"]) == list(ARMS)
