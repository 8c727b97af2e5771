"""NVIDIA FLARE carries letters, identity and jobs between hospitals; every number is ours."""
