"""Simulated hospitals have anatomy, MRI signal, scanner imperfections and whole sessions."""
