"""These modules read, check and prepare a hospital's images and tables, and split its patients."""
