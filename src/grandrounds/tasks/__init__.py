"""Tasks: what is learned. A task knows models and images, and nothing of federations."""

from grandrounds.tasks.synthesis import Synthesis

TASKS = {"synthesis": Synthesis}

__all__ = ["TASKS", "Synthesis"]
