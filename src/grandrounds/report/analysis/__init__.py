"""Numbers that a run folder holds: runs, arms, statistics and cross-site scores."""
