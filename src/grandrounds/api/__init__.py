"""This package is the public Python API; `import grandrounds` has its names."""
