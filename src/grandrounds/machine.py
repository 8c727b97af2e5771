"""What a run computes on: device, precision, threads, and what makes its numbers repeatable."""

import os
import resource
import sys
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import torch
from torch.utils import deterministic

from grandrounds.precision import DTYPES, choose_device, choose_precision
from grandrounds.training import Training

CGROUP = Path("/sys/fs/cgroup/memory.max")
FILL = "fill_uninitialized_memory"  # a module property, which type checkers cannot see


@dataclass(frozen=True)
class Machine:
    """Where a run computes, how precisely, with how many threads."""

    device: torch.device
    precision: torch.dtype
    threads: int

    @property
    def precision_name(self) -> str:
        """Say "bf16", "fp32" or "fp64"."""
        return next(name for name, dtype in DTYPES.items() if dtype == self.precision)


def machine_for(training: Training, *, processes: int = 1) -> Machine:
    """Choose device, precision and threads for a study. Raises `BadStudy` for an absent device.

    Each of several processes gets training.threads, which keeps the numbers; where that is 0, they
    share the cores.
    """
    device = choose_device(training.device)
    threads = training.threads or max(1, num_cores() // processes)
    return Machine(device, choose_precision(training.precision, device), threads)


@contextmanager
def repeatable(machine: Machine) -> Generator[None, None, None]:
    """Fix the threads and ask for deterministic algorithms; put both back afterwards.

    On accelerators some operations have no deterministic form: there a warning is given, and equal
    digests are promised on equal hardware only as far as the operations allow.
    """
    threads, strict = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    fills = cast(bool, getattr(deterministic, FILL))
    torch.set_num_threads(machine.threads)
    torch.use_deterministic_algorithms(True, warn_only=machine.device.type != "cpu")
    # Filling memory that is about to be overwritten finds bugs, changes no number, and costs 8 %.
    setattr(deterministic, FILL, False)
    try:
        yield
    finally:
        setattr(deterministic, FILL, fills)
        torch.use_deterministic_algorithms(strict)
        torch.set_num_threads(threads)


def peak_memory() -> int:
    """Give the largest resident size of this process so far, in bytes."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def physical_memory() -> int:
    """Give the machine's memory in bytes, or what the container may use of it."""
    whole = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    limit = CGROUP.read_text().strip() if CGROUP.exists() else "max"
    return whole if limit == "max" else min(whole, int(limit))


def num_cores() -> int:
    """Count the cores that this process may use; macOS cannot restrict them."""
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1
