"""Kernels, one folder an operation, with the same file names in each.

Caches are of float32 or a 16-bit float. There is no int8 or fp8 form, which would halve the bytes
once more: XLA's CPU compiler first makes a float32 copy of the whole cache (4 to 10 times the time
of a float32 product, 16k slots), and every operation, the cache's own included, would take scales
beside its arrays, for a gain that needs a GPU to be seen.
"""
