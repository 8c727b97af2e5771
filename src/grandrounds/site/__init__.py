"""A site answers requests with its own data, model and private weights."""
