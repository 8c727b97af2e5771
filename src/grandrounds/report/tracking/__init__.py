"""Trackers log events to MLflow, TensorBoard or W&B, live or from a run's journal."""
