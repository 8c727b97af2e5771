"""The report as one HTML page, written once or shown live."""
