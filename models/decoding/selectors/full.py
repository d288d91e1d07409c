"""Everything: drafts that agree with the verification up to rounding. A ceiling, not a saving."""

import dataclasses
import fractions

import jax.numpy as jnp

from models.axes import Lengths
from models.decoding.selectors.base import Selection, Unscored, right_align
from models.decoding.selectors.budget import Budget


@dataclasses.dataclass(frozen=True)
class Full(Unscored):
  """Every whole page."""

  page_size: int = 1

  @property
  def budget(self) -> Budget:
    return Budget(fractions.Fraction(1))

  def select(self, state: None, lengths: Lengths, layers: int, slots: int) -> Selection:
    del state
    capacity = slots // self.page_size
    whole = lengths // self.page_size
    page = jnp.arange(capacity)[None, :] - (capacity - whole[:, None])
    pages, counts = right_align(whole, capacity, page, layers)
    return Selection(pages, counts, tail=whole * self.page_size)


def full(budget: Budget, page_size: int = 1) -> Full:
  """Made like every selector, whatever the budget."""
  del budget
  return Full(page_size)
