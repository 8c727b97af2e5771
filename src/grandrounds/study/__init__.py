"""This package holds what a consortium agrees on: the study, its file, checks and signatures."""
