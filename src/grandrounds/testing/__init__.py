"""The conformance kit: theorems that one's own method or task must keep to, each to the bit."""

from grandrounds.testing.methods import check_method
from grandrounds.testing.relations import Broken, Relation
from grandrounds.testing.tasks import check_task

__all__ = ["Broken", "Relation", "check_method", "check_task"]
