"""Images of one hospital: read, checked, prepared, split by patient."""
