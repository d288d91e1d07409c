"""The definition of an append: each slot holds the new row that stands there, else what it held."""

import jax.numpy as jnp


def reference(cache, new, positions):
  """See `api.append`."""
  row = jnp.arange(cache.shape[2])[None] - positions[:, None]
  is_new = (row >= 0) & (row < new.shape[2])
  row = jnp.clip(row, 0, new.shape[2] - 1)
  moved = jnp.take_along_axis(new.astype(cache.dtype), row[:, None, :, None], axis=2)
  return jnp.where(is_new[:, None, :, None], moved, cache)
