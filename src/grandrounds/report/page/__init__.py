"""This package makes the report as one HTML page, written once or served live."""
