"""Kernels, one folder an operation, with the same file names in each."""
