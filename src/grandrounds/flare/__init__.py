"""NVIDIA FLARE carries messages, identities and jobs between hospitals; it computes no number."""
