"""Federated learning for medical imaging: one study file, any task, method, topology and engine."""

from importlib import import_module
from importlib.metadata import version
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from grandrounds.algorithms.aggregation import ServerStep as ServerStep
    from grandrounds.algorithms.aggregation import Updates as Updates
    from grandrounds.algorithms.method import LocalRound as LocalRound
    from grandrounds.algorithms.method import Method as Method
    from grandrounds.algorithms.method import Pull as Pull
    from grandrounds.algorithms.method import Update as Update
    from grandrounds.algorithms.method import remembered as remembered
    from grandrounds.algorithms.sharing import Sharing as Sharing
    from grandrounds.api.run import FinishedRun as FinishedRun
    from grandrounds.api.run import compare as compare
    from grandrounds.api.run import run as run
    from grandrounds.api.study import load as load
    from grandrounds.api.study import save as save
    from grandrounds.core.state import State as State
    from grandrounds.core.weights import Weights as Weights
    from grandrounds.core.weights import select as select
    from grandrounds.data.dataset import PatientDataset as PatientDataset
    from grandrounds.study.study import Study as Study
    from grandrounds.tasks.supervised import SupervisedTask as SupervisedTask

__version__ = version("grandrounds")
_HOMES = {  # of each public name, which is imported when it is first used (PEP 562)
    "algorithms.aggregation": ("ServerStep", "Updates"),
    "algorithms.method": ("LocalRound", "Method", "Pull", "Update", "remembered"),
    "algorithms.sharing": ("Sharing",),
    "api.run": ("FinishedRun", "compare", "run"),
    "api.study": ("load", "save"),
    "core.state": ("State",),
    "core.weights": ("Weights", "select"),
    "data.dataset": ("PatientDataset",),
    "study.study": ("Study",),
    "tasks.supervised": ("SupervisedTask",),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}
__all__ = ["__version__", *_HOME_OF]  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> object:
    if name not in _HOME_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME_OF[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
