"""These checks look at a machine's packages, disk, store of jobs, memory and accelerator."""

import platform
import shutil
from importlib.metadata import version
from pathlib import Path

import torch

from grandrounds.core.device import choose_device, num_cores, physical_memory
from grandrounds.core.extras import install_command
from grandrounds.flare.doctor.finding import GIB, Finding, Party, bad, ok, skipped
from grandrounds.flare.job_store import BY_NVFLARE, store_of, stores
from grandrounds.runs.costs import estimate, plan_run

NVFLARE = "2.9"
LEAST_DISK = 2 * GIB  # for NVFlare's logs and jobs, and a run without its states
LEAST_SHARED = 64 * 2**20  # what a container has unless it is given more
STATES = 2  # times `Estimate.weights`: three rounds with an optimiser's and a method's memory
DRIVER = Path("/dev/nvidiactl")
SHARED = Path("/dev/shm")
_MOVES = "`grandrounds federation start` changes that"


def versions(_: Party) -> Finding:
    """Check NVFlare's version, and list the versions that must be equal everywhere."""
    ours = [f"{name} {version(name)}" for name in ("grandrounds", "torch", "nvflare")]
    found = ", ".join([*ours, f"Python {platform.python_version()}"])
    if not version("nvflare").startswith(f"{NVFLARE}."):
        return bad(found, f"{install_command('flare')}; it is made for nvflare {NVFLARE}")
    return ok(f"{found}; grandrounds and torch must be the same everywhere")


def disk(party: Party) -> Finding:
    """Check the free space of the disk that holds the kit and its runs."""
    need = LEAST_DISK + (STATES * estimate(plan_run(party.study)).weights if party.study else 0)
    free = shutil.disk_usage(party.kit.folder).free
    found = f"{free / GIB:.1f} GiB free where runs lie, {need / GIB:.1f} GiB wanted"
    if free < need:
        return bad(found, f"make room, or move the kit {party.kit.folder} to a larger disk")
    return ok(found)


def store(party: Party) -> Finding:
    """Check that a server stores its jobs in its own kit, also after the kit was moved."""
    if party.kit.kind != "server":
        return skipped("for the server alone")
    own, (now, started) = str(store_of(party.kit)), stores(party.kit)
    if started != [own]:
        return bad(
            f"jobs are stored in {', '.join(started)}, where nothing settles a lost job or cleans",
            f"let root_dir and uri_root in local/resources.json lie in {own}",
        )
    if now == started:
        return ok("jobs are stored in the kit")
    if now == [BY_NVFLARE]:
        return ok(f"jobs are stored in {BY_NVFLARE}, until {_MOVES}")
    return ok(f"the kit was moved or copied, and stores jobs in {', '.join(now)}, until {_MOVES}")


def memory(party: Party) -> Finding:
    """Check the memory that this process may use against the study's estimate."""
    have = physical_memory()
    if party.study is None:
        return skipped(f"{have / GIB:.1f} GiB; with --study it is compared with the estimate")
    need = estimate(plan_run(party.study)).memory
    found = f"{have / GIB:.1f} GiB, {need / GIB:.1f} GiB wanted"
    if have < need:
        return bad(found, "take a larger machine, or agree on a smaller size, network or batch")
    return ok(found)


def shared_memory(_: Party) -> Finding:
    """Check the free shared memory, of which containers have little."""
    if not SHARED.exists():
        return skipped(f"this system has no {SHARED}")
    free = shutil.disk_usage(SHARED).free
    found = f"{free / 2**20:.0f} MiB free in {SHARED}, {LEAST_SHARED / 2**20:.0f} MiB wanted"
    if free < LEAST_SHARED:
        return bad(found, "clear it, or give the container more (docker run --shm-size=1g)")
    return ok(found)


def accelerator(party: Party) -> Finding:
    """Name the device that will train. Raises `BadStudy` where the study wants another."""
    device = choose_device(party.study.training.device if party.study else "auto")
    if device.type == "cuda":
        return ok(torch.cuda.get_device_name(device))
    if DRIVER.exists():
        return bad(
            f"a GPU's driver is here ({DRIVER}), but torch {torch.__version__} would train on "
            f"{device.type}",
            "install torch for CUDA, and let the container see the GPU",
        )
    return ok(f"none: {device.type} will train, on {num_cores()} cores")
