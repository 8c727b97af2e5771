"""A run computes on a device, with a precision and threads, so that its numbers repeat."""

import os
import resource
import sys
from collections.abc import Collection, Generator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias, cast

import torch
from torch import Tensor
from torch.utils import deterministic as switches

from grandrounds.core.errors import BadStudy, require
from grandrounds.core.sentence import phrase
from grandrounds.core.soundness import is_sound_in_3d

Precision: TypeAlias = Literal["auto", "bf16", "fp32", "fp64"]
DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32, "fp64": torch.float64}
CGROUP = Path("/sys/fs/cgroup/memory.max")
CPU_QUOTA = Path("/sys/fs/cgroup/cpu.max")  # microseconds of computing, in so many of a clock's
# What Slurm gives a job: the cores of a task where it says so, else all that the job has here; MiB.
SLURM_CORES = ("SLURM_CPUS_PER_TASK", "SLURM_CPUS_ON_NODE")
SLURM_MEMORY = ("SLURM_MEM_PER_NODE",)
FILL = "fill_uninitialized_memory"  # a module property, which type checkers cannot see
FILLS = False  # to fill memory before it is written finds bugs, changes no number, and costs 8 %
_CPU_FEATURES = frozenset({"amx_bf16", "avx512_bf16"})
_CPU_INFO = Path("/proc/cpuinfo")


def choose_device(wish: str = "auto") -> torch.device:
    """Return the wished device, or for "auto" the first present of cuda, mps, cpu.

    Raises `BadStudy` if the wish names no device or one that this machine lacks.
    """
    if wish == "auto":
        named = [torch.device(name).type for name in _SHARE.devices]
        return next(_shared(kind) for kind in (*named, "cuda", "mps", "cpu") if _count(kind))
    try:
        device = torch.device(wish)
    except RuntimeError:
        raise BadStudy(
            f"'{wish}' names no device; say auto, cpu, cuda, cuda:N or mps.",
            safe=phrase("the study's training.device names no device"),
        ) from None
    if (device.index or 0) >= _count(device.type):
        raise BadStudy(
            f"This machine has no device '{wish}'; say auto, or cpu, which is always there.",
            safe=phrase("it lacks the device that the study's training.device names"),
        )
    return device if ":" in wish else _shared(device.type)


@dataclass
class _Share:
    """The number of this process among those that share the accelerators, and which these are."""

    number: int = 0
    devices: tuple[str, ...] = ()


_SHARE = _Share()


def take_share(number: int, devices: tuple[str, ...] = ()) -> None:
    """Let this process compute on one accelerator of several: that with its number, in turn.

    That is of `devices`, where they are named, or else of all that there are.
    """
    _SHARE.number, _SHARE.devices = number, devices


def read_devices(text: str | None, wishes: Collection[str]) -> tuple[str, ...]:
    """Read the devices that processes compute on in turn, for studies that wish these devices.

    Without a text there are none. Raises `BadStudy` where one is absent, and where they are not
    what a study asks for.
    """
    if text is None:
        return ()
    names = tuple(name.strip() for name in text.split(",") if name.strip())
    require(bool(names), "--devices names none; for example --devices cuda:0,cuda:1")
    kinds = {choose_device(name).type for name in names}
    for name in names:
        require(name != "cuda", f"--devices {text}: cuda needs a number, for example cuda:0")
        require(names.count(name) == 1, f"--devices {text}: names {name} twice; name it once")
    require(
        len(kinds) == 1,
        f"--devices {text}: names devices of several kinds, whose numbers differ; choose one kind",
    )
    for wish in wishes:
        require(
            wish in ("auto", *kinds),
            f'--devices {text} would do nothing: the study has training.device = "{wish}"; '
            'leave it out, or set training.device = "auto"',
        )
    return names


def _shared(kind: str) -> torch.device:
    named = [torch.device(name) for name in _SHARE.devices]
    if named and kind == named[0].type:
        return named[_SHARE.number % len(named)]
    count = _count(kind)
    return torch.device(kind, _SHARE.number % count) if count > 1 else torch.device(kind)


def _count(kind: str) -> int:
    match kind:
        case "cuda":
            return torch.cuda.device_count() if torch.cuda.is_available() else 0
        case "mps":
            return int(torch.backends.mps.is_available())
        case _:
            return int(kind == "cpu")


def choose_precision(
    wish: Precision, device: torch.device, *, volumes: bool = False
) -> torch.dtype:
    """Return the dtype that convolutions and matrix products compute in on this device.

    A network of `volumes` computes in float32 where this device's 3-D convolutions in bfloat16 are
    not to be relied on. Raises `BadStudy` where the study insists on them.
    """
    if wish not in ("auto", "bf16"):
        return DTYPES[wish]
    if wish == "auto" and not _multiplies_bf16(device):
        return torch.float32
    if volumes and not is_sound_in_3d(device, torch.bfloat16):
        if wish == "bf16":
            raise BadStudy(
                'training.precision = "bf16": 3-D convolutions in bfloat16 give other gradients '
                'each time on this machine; say "auto" or "fp32"',
                safe=phrase("its 3-D convolutions in bfloat16 do not repeat"),
            )
        return torch.float32
    return torch.bfloat16


def _multiplies_bf16(device: torch.device) -> bool:
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    return device.type == "cpu" and not _CPU_FEATURES.isdisjoint(_cpu_features())


def _cpu_features() -> frozenset[str]:
    # Older releases of torch have no public function for this; Linux lists the same features.
    if hasattr(torch.cpu, "get_capabilities"):
        present = torch.cpu.get_capabilities()
        return frozenset(name for name, value in present.items() if value is True)
    return frozenset(_CPU_INFO.read_text().split()) if _CPU_INFO.exists() else frozenset()


def autocast(device: torch.device, dtype: torch.dtype) -> torch.autocast:
    """Compute in bfloat16 inside this context, with float32 weights; other types change nothing.

    Casts are not cached: after an optimiser step in the same context they would be of old weights.
    """
    return torch.autocast(
        device.type, dtype=dtype, enabled=dtype == torch.bfloat16, cache_enabled=False
    )


def full_precision(device: torch.device) -> AbstractContextManager[object]:
    """Compute in the weights' own type inside this context, whatever the precision around it."""
    if device.type == "meta":  # nothing is computed there, and autocast does not support it
        return nullcontext()
    return torch.autocast(device.type, enabled=False)


def to_float32(tensor: Tensor) -> Tensor:
    """Convert a result of bfloat16 arithmetic to float32; float64 stays as it is."""
    return tensor if tensor.dtype == torch.float64 else tensor.float()


def weights_dtype(precision: torch.dtype) -> torch.dtype:
    """Return the type of weights and of their inputs: float64 for fp64, otherwise float32."""
    return torch.float64 if precision == torch.float64 else torch.float32


@dataclass(frozen=True)
class Machine:
    """The device, the precision and the number of threads that a run computes with."""

    device: torch.device
    precision: torch.dtype
    threads: int

    @property
    def precision_name(self) -> str:
        """Return "bf16", "fp32" or "fp64"."""
        return next(name for name, dtype in DTYPES.items() if dtype == self.precision)


def machine_for(
    device: str,
    precision: Precision,
    threads: int,
    *,
    processes: int = 1,
    volumes: bool = False,
) -> Machine:
    """Choose device, precision and threads for a study. Raises `BadStudy` for an absent device.

    Each of several processes gets `threads`, so that the numbers do not depend on how many there
    are; where `threads` is 0, the processes share the cores.
    """
    chosen = choose_device(device)
    threads = threads or max(1, num_cores() // processes)
    return Machine(chosen, choose_precision(precision, chosen, volumes=volumes), threads)


@contextmanager
def deterministic(machine: Machine) -> Generator[None, None, None]:
    """Fix the threads and require deterministic algorithms; restore both settings afterwards.

    On accelerators some operations have no deterministic form: torch then warns, and digests are
    equal on equal hardware only as far as the operations allow.
    """
    threads, strict = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    fills = cast(bool, getattr(switches, FILL))
    torch.set_num_threads(machine.threads)
    torch.use_deterministic_algorithms(True, warn_only=machine.device.type != "cpu")
    setattr(switches, FILL, FILLS)
    try:
        yield
    finally:
        setattr(switches, FILL, fills)
        torch.use_deterministic_algorithms(strict)
        torch.set_num_threads(threads)


def peak_memory() -> int:
    """Return the largest resident size of this process so far, in bytes."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def physical_memory() -> int:
    """Return the machine's memory in bytes, or the container's or job's limit where it is lower."""
    total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    limit = CGROUP.read_text().strip() if CGROUP.exists() else "max"
    given = _allotted(SLURM_MEMORY)
    return min(
        total,
        total if limit == "max" else int(limit),
        given * 2**20 if given else total,
    )


def num_cores() -> int:
    """Count the cores that this process may use: by its affinity, its container's quota, its job.

    macOS cannot restrict them.
    """
    if sys.platform != "linux":
        return os.cpu_count() or 1
    return min(len(os.sched_getaffinity(0)), _quota(), _allotted(SLURM_CORES) or sys.maxsize)


def _allotted(names: Sequence[str]) -> int:
    """Return the first number that Slurm gives this job under these names; 0 outside of a job."""
    found = [os.environ.get(name, "") for name in names]
    return next((int(word) for word in found if word.isdecimal() and int(word)), 0)


def _quota() -> int:
    quota, _, period = (CPU_QUOTA.read_text() if CPU_QUOTA.exists() else "max").partition(" ")
    return sys.maxsize if quota.strip() == "max" else max(1, int(quota) // int(period))
