"""Figures and tables for a publication."""
