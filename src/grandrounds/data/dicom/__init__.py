"""DICOM files in any order become volumes; only here are they read, in processes with limits."""
