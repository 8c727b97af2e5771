"""What tests of several kinds share: a cache, the real images, a way to write a tiny volume."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeAlias

import nibabel as nib
import numpy as np
import pytest
import torch
from numpy.typing import ArrayLike

from grandrounds.core import device, processes
from grandrounds.core.events import WorkSet
from grandrounds.runs import build
from grandrounds.runs.costs import RunPlan, workload
from tests.helpers.processes import loaded

SaveVolume: TypeAlias = Callable[..., Path]
REPOSITORY = Path(__file__).parents[1]


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--rewrite-golden",
        action="store_true",
        help="write the golden digests anew, for this version of torch on this platform",
    )


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Sessions are prepared and simulated once for all tests; nothing outside is touched."""
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GRANDROUNDS_CACHE", str(folder))
        yield folder


@pytest.fixture(scope="session", autouse=True)
def one_thread_each() -> None:
    """Tests share the cores, and exact numbers need a fixed number of threads."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session", autouse=True)
def memory_holds_nan() -> Iterator[None]:
    """Whoever reads a tensor that nobody wrote, reads NaN."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(device, "FILLS", True)
        yield


@pytest.fixture(scope="session", autouse=True)
def workers_find_everything_loaded(own_cache: Path) -> Iterator[None]:
    """Worker processes are forked from one that has loaded torch and MONAI, which takes seconds."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(processes, "SPAWN", loaded())
        yield


@pytest.fixture(scope="session", autouse=True)
def work_counted_once() -> Iterator[None]:
    """The operations of a step follow from network and batch; to count them takes half a second."""
    counted: dict[str, WorkSet] = {}

    def remembered(plan: RunPlan) -> WorkSet:
        study = plan.study
        network_and_batch = repr((plan.task, study.elements.size, study.training.batch_size))
        if network_and_batch not in counted:
            counted[network_and_batch] = workload(plan)
        return counted[network_and_batch]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(build, "workload", remembered)
        yield


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real images: GRANDROUNDS_DATA, or shared/data beside the repository."""
    default = REPOSITORY.parent / "shared" / "data"
    folder = Path(os.environ.get("GRANDROUNDS_DATA", default))
    if not folder.is_dir():
        reason = f"real images: {folder} is missing (set GRANDROUNDS_DATA)"
        if os.environ.get("CI") == "true":
            pytest.fail(reason)
        pytest.skip(reason)
    return folder


@pytest.fixture(scope="session")
def save_volume() -> SaveVolume:
    """Writes voxels (x, y, z), by default 1 mm and towards right, anterior and superior."""

    def save(path: Path, voxels: ArrayLike, affine: ArrayLike | None = None) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        nib.save(nib.Nifti1Image(np.asarray(voxels), np.eye(4) if affine is None else affine), path)
        return path

    return save


@pytest.fixture(scope="session")
def head() -> np.ndarray:
    """A ball of 40 to 100, brighter to the front, in 12 x 14 x 6 voxels of air."""
    x, y, z = np.meshgrid(*(np.linspace(-1, 1, n) for n in (12, 14, 6)), indexing="ij")
    return np.where(x**2 + y**2 + z**2 < 0.9, 70 + 30 * y, 0).astype(np.float32)
