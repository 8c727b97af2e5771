"""A task is what a study learns; it knows models and images, and nothing of federations.

A new task is one file, a word in `TASKS` and a member of `AnyTask`.
"""

from typing import TypeAlias

from grandrounds.tasks.classification import Classification
from grandrounds.tasks.segmentation import Segmentation
from grandrounds.tasks.synthesis import Synthesis
from grandrounds.tasks.tabular import Tabular
from grandrounds.tasks.task import TaskOptions

AnyTask: TypeAlias = Synthesis | Segmentation | Classification | Tabular
TASKS: dict[str, type[AnyTask]] = {
    "synthesis": Synthesis,
    "segmentation": Segmentation,
    "classification": Classification,
    "tabular": Tabular,
}

__all__ = [
    "TASKS",
    "AnyTask",
    "Classification",
    "Segmentation",
    "Synthesis",
    "Tabular",
    "TaskOptions",
]
