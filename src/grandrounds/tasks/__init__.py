"""Tasks: what is learned. A task knows models and images, and nothing of federations.

A new task is one file, a word in `TASKS` and a member of `AnyTask`.
"""

from typing import TypeAlias

from grandrounds.tasks.synthesis import Synthesis
from grandrounds.tasks.task import TaskOptions

AnyTask: TypeAlias = Synthesis
TASKS: dict[str, type[AnyTask]] = {"synthesis": Synthesis}

__all__ = ["TASKS", "AnyTask", "Synthesis", "TaskOptions"]
