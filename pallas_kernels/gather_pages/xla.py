"""The gather with a page as its unit, so that XLA copies whole pages.

Measured beside it (8 heads, 1,147 of 16k tokens, or 72 pages of 16; f32, CPU): a loop of
`dynamic_slice` 1.4 and 2.2 times the time; a gather of single slots is the same for tokens.
"""

import jax.numpy as jnp


def supports(*_, **__) -> None:
  """Every case is supported."""


def gather_pages(cache, pages, *, page_size):
  """See `api.gather_pages`."""
  batch, kv_heads, slots, size = cache.shape
  cache = cache.reshape(batch, kv_heads, slots // page_size, page_size * size)
  pages = jnp.broadcast_to(jnp.maximum(pages, 0), (batch, kv_heads, pages.shape[2]))
  gathered = jnp.take_along_axis(cache, pages[..., None], axis=2, mode="promise_in_bounds")
  return gathered.reshape(batch, kv_heads, -1, size)
