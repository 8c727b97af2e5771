"""A task is what a study learns; it knows models and images, and nothing of federations.

A new task of the house is one file, a word in `TASKS` and a member of `AnyTask`; a `SupervisedTask`
lies elsewhere, and a study names it by its address.
"""

from typing import TypeAlias

from grandrounds.core.extensions import TASK_WORDS, chosen_class
from grandrounds.tasks.classification import Classification
from grandrounds.tasks.segmentation import Segmentation
from grandrounds.tasks.supervised import SupervisedTask, checked_class
from grandrounds.tasks.synthesis import Synthesis
from grandrounds.tasks.tabular import Tabular
from grandrounds.tasks.task import TaskOptions

BuiltIn: TypeAlias = Synthesis | Segmentation | Classification | Tabular
AnyTask: TypeAlias = BuiltIn | SupervisedTask
TASKS: dict[str, type[BuiltIn]] = {
    "synthesis": Synthesis,
    "segmentation": Segmentation,
    "classification": Classification,
    "tabular": Tabular,
}


def task_class(word: object) -> type[AnyTask]:
    """Return the class that a study's word for a task names. Raises `BadStudy`."""
    path = "task.kind"
    found = chosen_class(path, word, SupervisedTask, TASKS, TASK_WORDS)
    return checked_class(path, found) if issubclass(found, SupervisedTask) else found


__all__ = [
    "TASKS",
    "AnyTask",
    "BuiltIn",
    "Classification",
    "Segmentation",
    "SupervisedTask",
    "Synthesis",
    "Tabular",
    "TaskOptions",
    "task_class",
]
