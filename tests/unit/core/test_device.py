import sys
from pathlib import Path

import pytest
import torch

from grandrounds.core import device as precision
from grandrounds.core.device import (
    Machine,
    autocast,
    choose_device,
    choose_precision,
    deterministic,
    num_cores,
    peak_memory,
    physical_memory,
    read_devices,
    take_share,
)
from grandrounds.core.errors import BadStudy

CPU = torch.device("cpu")


def test_cpu_is_always_there():
    assert choose_device("cpu") == CPU


def test_auto_takes_an_accelerator_only_where_there_is_one():
    accelerated = torch.cuda.is_available() or torch.backends.mps.is_available()
    assert (choose_device("auto").type == "cpu") == (not accelerated)


@pytest.mark.parametrize("wish", ["auto", "cuda"])
def test_processes_take_several_accelerators_in_turn(monkeypatch: pytest.MonkeyPatch, wish: str):
    monkeypatch.setattr(precision, "_count", lambda kind: 2 if kind == "cuda" else 0)
    monkeypatch.setattr(precision, "_SHARE", precision._Share())
    found: list[str] = []
    for number in range(3):
        take_share(number)
        found.append(str(choose_device(wish)))
    assert found == ["cuda:0", "cuda:1", "cuda:0"]
    assert str(choose_device("cuda:1")) == "cuda:1"  # who names one gets it


@pytest.fixture
def three_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    present = {"cuda": 3, "cpu": 1}
    monkeypatch.setattr(precision, "_count", lambda kind: present.get(kind, 0))
    monkeypatch.setattr(precision, "_SHARE", precision._Share())


@pytest.mark.parametrize("wish", ["auto", "cuda"])
def test_processes_take_the_devices_that_are_named_in_turn(three_gpus: None, wish: str):
    devices = read_devices("cuda:2, cuda:0", [wish])
    found: list[str] = []
    for number in range(3):
        take_share(number, devices)
        found.append(str(choose_device(wish)))
    assert found == ["cuda:2", "cuda:0", "cuda:2"]
    take_share(1, read_devices("cuda:1", [wish]))
    assert str(choose_device(wish)) == "cuda:1"
    take_share(0, read_devices("cpu", ["auto"]))
    assert str(choose_device("auto")) == "cpu"
    assert read_devices(None, [wish]) == ()


@pytest.mark.parametrize(
    ("text", "wish", "sentence"),
    [
        ("", "auto", "--devices names none; for example --devices cuda:0,cuda:1"),
        ("cuda:3", "auto", "This machine has no device 'cuda:3'"),
        ("gpu", "auto", "'gpu' names no device"),
        ("cuda,cuda:1", "auto", "--devices cuda,cuda:1: cuda needs a number, for example cuda:0"),
        ("cuda:0,cuda:0", "auto", "--devices cuda:0,cuda:0: names cuda:0 twice"),
        ("cpu,cuda:0", "auto", "names devices of several kinds, whose numbers differ"),
        (
            "cuda:0",
            "cpu",
            '--devices cuda:0 would do nothing: the study has training.device = "cpu"',
        ),
        ("cuda:0", "cuda:1", "--devices cuda:0 would do nothing"),
    ],
)
def test_devices_that_cannot_be_are_refused(three_gpus: None, text: str, wish: str, sentence: str):
    with pytest.raises(BadStudy, match=sentence):
        read_devices(text, ["auto", wish])


def test_one_accelerator_is_everyone_s(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(precision, "_count", lambda kind: int(kind == "cuda"))
    monkeypatch.setattr(precision, "_SHARE", precision._Share(3))
    assert str(choose_device("auto")) == "cuda"


@pytest.mark.skipif(sys.platform != "linux", reason="cgroups are Linux's")
@pytest.mark.parametrize(
    ("quota", "cores"),
    [("max 100000", 8), ("250000 100000", 2), ("50000 100000", 1), ("900000 100000", 8), ("", 8)],
)
def test_cores_are_those_that_the_process_may_use(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, quota: str, cores: int
):
    file = tmp_path / "cpu.max"
    if quota:
        file.write_text(f"{quota}\n")
    monkeypatch.setattr(precision, "CPU_QUOTA", file)
    monkeypatch.setattr(precision.os, "sched_getaffinity", lambda _: set(range(8)))
    assert num_cores() == cores


@pytest.mark.skipif(sys.platform != "linux", reason="Slurm is Linux's")
@pytest.mark.parametrize(
    ("variables", "cores"),
    [
        ({"SLURM_CPUS_PER_TASK": "3", "SLURM_CPUS_ON_NODE": "6"}, 3),
        ({"SLURM_CPUS_ON_NODE": "6"}, 6),
        ({"SLURM_CPUS_PER_TASK": "64"}, 8),
        ({"SLURM_CPUS_PER_TASK": "many"}, 8),
        ({}, 8),
    ],
)
def test_a_slurm_job_has_the_cores_that_it_was_given(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, variables: dict[str, str], cores: int
):
    monkeypatch.setattr(precision, "CPU_QUOTA", tmp_path / "none")
    monkeypatch.setattr(precision.os, "sched_getaffinity", lambda _: set(range(8)))
    for name in precision.SLURM_CORES:
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert num_cores() == cores


def test_a_slurm_job_has_the_memory_that_it_was_given(monkeypatch: pytest.MonkeyPatch):
    whole = physical_memory()
    monkeypatch.setenv("SLURM_MEM_PER_NODE", "512")
    assert physical_memory() == 512 * 2**20
    monkeypatch.setenv("SLURM_MEM_PER_NODE", "0")  # all of the node's
    assert physical_memory() == whole


@pytest.mark.parametrize("wish", ["cuda:99", "meta", "cpu:1"])
def test_an_absent_device_is_refused_by_name(wish: str):
    with pytest.raises(BadStudy, match=f"no device '{wish}'"):
        choose_device(wish)


def test_a_word_that_names_no_device_is_refused():
    with pytest.raises(BadStudy, match="'gpu' names no device; say auto"):
        choose_device("gpu")


def test_an_explicit_precision_is_taken_as_it_is():
    assert choose_precision("bf16", CPU) == torch.bfloat16
    assert choose_precision("fp32", CPU) == torch.float32


@pytest.mark.parametrize(
    ("features", "dtype"),
    [
        ({"avx2", "avx512_f"}, torch.float32),
        ({"amx_bf16"}, torch.bfloat16),
        ({"avx512_bf16", "avx2"}, torch.bfloat16),
    ],
)
def test_auto_takes_bf16_where_the_cpu_multiplies_it(
    features: set[str], dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(precision, "_cpu_features", lambda: frozenset(features))
    assert choose_precision("auto", CPU) == dtype


@pytest.mark.parametrize(
    ("capability", "dtype"), [((7, 5), torch.float32), ((8, 0), torch.bfloat16)]
)
def test_auto_takes_bf16_from_cuda_capability_8_on(
    capability: tuple[int, int], dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    assert choose_precision("auto", torch.device("cuda")) == dtype


def test_auto_stays_in_fp32_on_mps():
    assert choose_precision("auto", torch.device("mps")) == torch.float32


def test_older_torch_reads_the_features_that_linux_lists(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    listing = tmp_path / "cpuinfo"
    monkeypatch.delattr(torch.cpu, "get_capabilities", raising=False)
    monkeypatch.setattr(precision, "_CPU_INFO", listing)
    assert choose_precision("auto", CPU) == torch.float32
    listing.write_text("flags : fpu avx2 amx_bf16\n")
    assert choose_precision("auto", CPU) == torch.bfloat16


def test_autocast_multiplies_in_bf16_and_fp32_changes_nothing():
    ones = torch.ones(2, 2)
    with autocast(CPU, torch.bfloat16):
        assert (ones @ ones).dtype == torch.bfloat16
    with autocast(CPU, torch.float32):
        assert (ones @ ones).dtype == torch.float32


def test_autocast_sees_weights_that_changed_inside_the_context():
    layer = torch.nn.Linear(1, 1, bias=False)
    one = torch.ones(1, 1)
    with autocast(CPU, torch.bfloat16):
        layer(one)
        with torch.no_grad():
            layer.weight.fill_(3.0)
        assert layer(one).item() == 3.0


@pytest.mark.parametrize(("device", "warns"), [("cpu", False), ("cuda", True)])
def test_an_operation_that_may_differ_stops_a_run_on_cpu_and_warns_on_an_accelerator(
    device: str, warns: bool
):
    with deterministic(Machine(torch.device(device), torch.float32, threads=1)):
        assert torch.are_deterministic_algorithms_enabled()
        assert torch.is_deterministic_algorithms_warn_only_enabled() == warns


def test_peak_memory_is_in_bytes():
    """More than torch needs at least, less than the machine has: a wrong unit is 1024 times off."""
    assert 2**25 < peak_memory() < physical_memory()
