"""One hospital's images and tables are read, checked, prepared and split by patient."""
