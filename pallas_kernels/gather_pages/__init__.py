"""Selected pages of a KV cache, side by side in a compact scratch."""

from pallas_kernels.gather_pages.api import gather_pages

__all__ = ["gather_pages"]
