"""Engines carry a request to a site and bring its reply back; they compute nothing."""
