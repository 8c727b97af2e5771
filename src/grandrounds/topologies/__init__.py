"""Topologies: who talks to whom in a round, and the only view that they have of an engine."""

from grandrounds.topologies.star import Star

TOPOLOGIES = {"star": Star}

__all__ = ["TOPOLOGIES", "Star"]
