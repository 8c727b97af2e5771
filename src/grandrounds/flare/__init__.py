"""NVIDIA FLARE carries messages, identities and jobs between hospitals; every number is ours."""
