"""One hospital: it answers requests with its own data, model and private weights."""
