"""Trackers are readers of the events: MLflow and TensorBoard, live or from a run's journal."""
