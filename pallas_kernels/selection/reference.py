"""The definition of a selection, by a full sort."""

import jax.numpy as jnp


def page_mass(page_lse, lse, *, sets):
  """See `api.page_mass`."""
  share = jnp.exp(page_lse - lse[..., None])
  batch, heads, rows, pages = share.shape
  return share.reshape(batch, sets, (heads // sets) * rows, pages).mean(axis=2)


def select_pages(mass, limits, counts, *, capacity):
  """See `api.select_pages`."""
  pages = mass.shape[2]
  counts = jnp.minimum(counts, jnp.minimum(limits, min(capacity, pages)))
  eligible = (jnp.arange(pages)[None] < limits[:, None])[:, None]
  order = jnp.argsort(jnp.where(eligible, -mass, jnp.inf), axis=-1, stable=True)
  rank = jnp.argsort(order, axis=-1)
  chosen = jnp.where(rank < counts[:, None, None], jnp.arange(pages)[None, None], -1)
  padding = [(0, 0), (0, 0), (max(capacity - pages, 0), 0)]
  chosen = jnp.pad(jnp.sort(chosen, axis=-1), padding, constant_values=-1)
  return chosen[:, :, chosen.shape[2] - capacity :].astype(jnp.int32), counts
