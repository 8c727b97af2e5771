"""This package makes a run's or comparison's report, cards and tracked points, without torch."""
