"""The report of a run or a comparison, its cards and its trackers; none of them needs torch."""
