"""A trained model, used: predictions, exports and synthesised volumes."""
