"""This package computes the numbers of a run folder: runs, arms, statistics, cross-site scores."""
