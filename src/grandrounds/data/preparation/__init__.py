"""A site's volumes are prepared for training: one bias field less, one space, one grid."""
