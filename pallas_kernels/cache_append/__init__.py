"""Writing new rows into a KV cache at ragged positions, in place."""

from pallas_kernels.cache_append.api import append

__all__ = ["append"]
