"""Attacks on a finished run, made at a site on its own data: what its model and updates reveal."""
