"""This package runs a study: it builds what trains, plays the rounds and keeps the results."""
