"""The true top of every draft token's own attention: the ceiling of what selecting can reach.

It reads every key to know which to read, so it gains no time; its acceptance is what others are
held against.
"""

import dataclasses
from typing import Literal

from models.axes import Array, CachedKeysOrValues, Int, Lengths, Queries
from models.decoding.selectors.base import Observation, Settings, Unscored, pages_for
from pallas_kernels.attention_with_mass.api import attention_with_mass
from pallas_kernels.selection.api import page_mass, select_pages


@dataclasses.dataclass(frozen=True)
class Oracle(Unscored, Settings):
  """The top pages by the query's own softmax weights, mean over each set of query heads."""

  head_sets: Literal["all", "group"] = "group"

  def init(self, observation: Observation) -> None:
    del observation

  def select_in_layer(
    self, layer: None, q: Queries, keys: CachedKeysOrValues, lengths: Lengths, newest: Lengths
  ) -> Int[Array, "B Z E"]:
    del layer
    # Values are nothing to it: what comes out of them is not used, and so not computed.
    seen = attention_with_mass(q, keys, keys, newest, rows=(0,), page_size=self.page_size)
    assert seen.page_lse is not None
    sets = 1 if self.head_sets == "all" else keys.shape[1]
    mass = page_mass(seen.page_lse, seen.lse, sets=sets)
    capacity = pages_for(self.budget.at(keys.shape[2]), self.page_size)
    counts = pages_for(self.budget.of(lengths), self.page_size)
    pages, _ = select_pages(mass, lengths // self.page_size, counts, capacity=capacity)
    return pages

  def extra_reads(self) -> float:
    """Every key."""
    return 0.5
