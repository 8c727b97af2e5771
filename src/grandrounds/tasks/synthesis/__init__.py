"""Synthesis makes one MRI contrast from another."""

from grandrounds.tasks.synthesis.task import Synthesis, SynthesisTask

__all__ = ["Synthesis", "SynthesisTask"]
