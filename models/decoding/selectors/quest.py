"""Quest (arXiv 2406.10774): the pages that could matter most to a token's own query.

Each page keeps the smallest and largest of its keys per channel. For a query q the most that q . k
can be over a page is sum over channels of max(q smallest, q largest); the pages of the highest such
bounds are read, and the last page with everything newer always.

Its published settings are pages of 16 and two dense layers. It has a set of pages per query head;
here the heads that share a key/value head share one, by their highest or mean bound.
"""

import dataclasses
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp

from models.axes import Array, CachedKeysOrValues, Float, Int, Lengths, Queries
from models.decoding.selectors.base import Observation, Settings, Unscored, pages_for
from pallas_kernels.selection.api import select_pages


class Bounds(NamedTuple):
  """Of each page's keys, per channel; nothing of pages that are not whole."""

  smallest: Float[Array, "B K P D"]
  largest: Float[Array, "B K P D"]


@dataclasses.dataclass(frozen=True)
class Quest(Unscored, Settings):
  """The pages of the highest bounds; `head_aggregation` over the query heads of a group."""

  head_aggregation: Literal["max", "mean"] = "max"

  def init(self, observation: Observation) -> tuple[Bounds, ...]:
    assert observation.cache is not None
    bounds = lambda keys: _bounds(keys, self.page_size)
    return tuple(bounds(keys) for keys in observation.cache.keys[self.dense_layers :])

  def observe(self, state: tuple[Bounds, ...], observation: Observation) -> tuple[Bounds, ...]:
    """Refreshes the pages that the verified rows may have completed.

    A page that drafts were written to and rolled back is read again once it is whole: until then
    it is no candidate.
    """
    assert observation.cache is not None
    pages = pages_for(observation.rows, self.page_size) + 1
    first = observation.lengths // self.page_size
    layers = observation.cache.keys[self.dense_layers :]
    return tuple(
      self._refreshed(bounds, keys, first, pages)
      for bounds, keys in zip(state, layers, strict=True)
    )

  def _refreshed(
    self, bounds: Bounds, keys: CachedKeysOrValues, first: Lengths, pages: int
  ) -> Bounds:
    pages = min(pages, bounds.smallest.shape[2])
    first = jnp.minimum(first, bounds.smallest.shape[2] - pages)
    size = pages * self.page_size
    read = lambda of_one, at: jax.lax.dynamic_slice_in_dim(of_one, at * self.page_size, size, 1)
    write = lambda old, new, at: jax.lax.dynamic_update_slice_in_dim(old, new, at, 1)
    fresh = _bounds(jax.vmap(read)(keys, first), self.page_size)
    return Bounds(
      *(jax.vmap(write)(old, new, first) for old, new in zip(bounds, fresh, strict=True))
    )

  def select_in_layer(
    self,
    layer: Bounds,
    q: Queries,
    keys: CachedKeysOrValues,
    lengths: Lengths,
    newest: Lengths,
  ) -> Int[Array, "B Z E"]:
    del newest
    bound = upper_bounds(layer, q)
    of_set = bound.max(axis=2) if self.head_aggregation == "max" else bound.mean(axis=2)
    capacity = pages_for(self.budget.at(keys.shape[2]), self.page_size)
    counts = pages_for(self.budget.of(lengths), self.page_size)
    pages, _ = select_pages(of_set, lengths // self.page_size, counts, capacity=capacity)
    return pages

  def extra_reads(self) -> float:
    """Two rows of bounds for each page's keys and values."""
    return 1 / self.page_size


def upper_bounds(bounds: Bounds, q: Queries) -> Float[Array, "B K G P"]:
  """The most that q . k can be over each page, for one row of queries [B, H, 1, D].

  max(q a, q b) with a <= b is q+ b + q- a, where q+ and q- are q's positive and negative parts.
  """
  batch, kv_heads, _, size = bounds.smallest.shape
  q = q.astype(jnp.float32).reshape(batch, kv_heads, -1, size)
  product = lambda q, of_page: jnp.einsum(
    "bkgd,bkpd->bkgp", q, of_page, preferred_element_type=jnp.float32, precision="highest"
  )
  return product(jnp.maximum(q, 0), bounds.largest) + product(jnp.minimum(q, 0), bounds.smallest)


def _bounds(keys: CachedKeysOrValues, page_size: int) -> Bounds:
  paged = keys.reshape(*keys.shape[:2], -1, page_size, keys.shape[3])
  return Bounds(paged.min(axis=3), paged.max(axis=3))
