"""Simulated hospitals: anatomy, MRI signal, scanner imperfections and whole sessions."""
