"""Attention over selected pages of a KV cache and a dense tail; what was not selected is not read.

A selection that holds for a round is better gathered once (`gather_pages`) and attended densely.
This operation is for selections that change with every draft token, and for GPUs, where pages are
read in place.
"""

from pallas_kernels.page_attention.api import page_attention
from pallas_kernels.page_attention.reference import PageAttention

__all__ = ["PageAttention", "page_attention"]
