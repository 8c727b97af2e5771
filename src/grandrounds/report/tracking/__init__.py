"""Trackers log events to MLflow or TensorBoard, live or from a run's journal."""
