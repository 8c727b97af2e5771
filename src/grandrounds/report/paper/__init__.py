"""This package makes figures and tables for a publication."""
