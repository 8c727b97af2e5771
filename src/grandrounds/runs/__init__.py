"""This package runs a study: it builds what trains, runs the rounds and saves the results."""
