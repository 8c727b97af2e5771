"""One file for each method, and nothing else in the house knows its name."""
