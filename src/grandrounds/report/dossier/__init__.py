"""One folder for a data officer: what left, from whom, and the proof of it."""
