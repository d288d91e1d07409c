"""Pages at random, drawn anew for every layer and round: the floor that a rule has to clear."""

import dataclasses

import jax
import jax.numpy as jnp

from models.axes import Lengths
from models.decoding.selectors.base import RoundSettings, Selection, Unscored, pages_for
from pallas_kernels.selection.api import select_pages


@dataclasses.dataclass(frozen=True)
class Random(Unscored, RoundSettings):
  """`draw` numbers the random selection; what a sequence gets depends on its length alone."""

  draw: int = 0

  def select(self, state: None, lengths: Lengths, layers: int, slots: int) -> Selection:
    del state
    capacity = pages_for(self.budget.at(slots), self.page_size)
    limits = lengths // self.page_size
    counts = pages_for(self.budget.of(lengths), self.page_size)
    lot = lambda length: jax.random.uniform(
      jax.random.fold_in(jax.random.key(self.draw), length), (layers, 1, slots // self.page_size)
    )
    lots = jax.vmap(lot, out_axes=1)(lengths)
    chosen = [select_pages(of_layer, limits, counts, capacity=capacity) for of_layer in lots]
    return Selection(
      jnp.stack([pages for pages, _ in chosen]),
      jnp.stack([count for _, count in chosen]),
      tail=limits * self.page_size,
    )
