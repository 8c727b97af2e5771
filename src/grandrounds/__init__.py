"""Federated learning for medical imaging: one study file, any task, method, topology and engine."""

from importlib.metadata import version

__version__ = version("grandrounds")
