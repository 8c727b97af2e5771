"""Engines send requests to sites and return their replies; they compute nothing."""
