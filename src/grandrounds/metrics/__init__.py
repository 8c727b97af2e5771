"""Per-case scores. Averages are made later: within a patient first."""
