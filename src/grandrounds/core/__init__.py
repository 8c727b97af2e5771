"""The language that all parts of the package speak; it imports nothing else of the package."""
