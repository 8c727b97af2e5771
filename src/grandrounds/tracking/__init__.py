"""Trackers are readers of the events: MLflow and TensorBoard, live or from a run's journal."""

from grandrounds.tracking.trackers import check, replay, runs_in, tracked

__all__ = ["check", "replay", "runs_in", "tracked"]
