"""The first tokens and the latest: StreamingLLM (arXiv 2309.17453), as MagicDec drafts with it.

Positions stay the original ones; nothing is scored and there is no state.
"""

import dataclasses

import jax.numpy as jnp

from models.axes import Lengths
from models.decoding.selectors.base import (
  RoundSettings,
  Selection,
  Unscored,
  pages_for,
  right_align,
)


@dataclasses.dataclass(frozen=True)
class Window(Unscored, RoundSettings):
  """`sink` tokens from the start (MagicDec's 16; at most half the budget), and the latest."""

  sink: int = 16

  def select(self, state: None, lengths: Lengths, layers: int, slots: int) -> Selection:
    del state
    capacity = pages_for(self.budget.at(slots), self.page_size)
    whole = lengths // self.page_size
    counts = jnp.minimum(pages_for(self.budget.of(lengths), self.page_size), whole)
    counts = jnp.minimum(counts, capacity)
    sink = jnp.minimum(pages_for(self.sink, self.page_size), counts // 2)[:, None]
    nth = jnp.arange(capacity)[None, :] - (capacity - counts[:, None])
    latest = whole[:, None] - counts[:, None] + nth
    pages, counts = right_align(counts, capacity, jnp.where(nth < sink, nth, latest), layers)
    return Selection(pages, counts, tail=whole * self.page_size)
