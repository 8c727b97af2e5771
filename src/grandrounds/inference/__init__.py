"""This package uses a trained model: it predicts, exports and synthesises volumes."""
