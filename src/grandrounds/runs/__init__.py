"""A study, run: what is built from it, the loop over rounds, and what the run folder receives."""
