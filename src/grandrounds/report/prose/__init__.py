"""This package writes the sentences of the report."""
