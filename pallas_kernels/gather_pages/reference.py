"""The definition of a gather: a slot of the scratch holds the cache's slot that it stands for."""

import jax.numpy as jnp


def reference(cache, pages, *, page_size):
  """See `api.gather_pages`."""
  slot = jnp.maximum(pages, 0)[..., None] * page_size + jnp.arange(page_size)[None, None, None]
  slot = slot.reshape(*pages.shape[:2], -1, 1)
  slot = jnp.broadcast_to(slot, (*cache.shape[:2], *slot.shape[2:]))
  return jnp.take_along_axis(cache, slot, axis=2)
