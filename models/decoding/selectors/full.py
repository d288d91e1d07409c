"""Everything: drafts that agree with the verification up to rounding. A ceiling, not a saving."""

import dataclasses
import fractions

import jax.numpy as jnp

from models.axes import Lengths
from models.decoding.selectors.base import RoundSettings, Selection, Unscored, right_align
from models.decoding.selectors.budget import Budget


@dataclasses.dataclass(frozen=True)
class Full(Unscored, RoundSettings):
  """Every whole page, whatever the budget."""

  def __post_init__(self):
    super().__post_init__()
    object.__setattr__(self, "budget", Budget(fractions.Fraction(1)))

  def select(self, state: None, lengths: Lengths, layers: int, slots: int) -> Selection:
    del state
    capacity = slots // self.page_size
    whole = lengths // self.page_size
    page = jnp.arange(capacity)[None, :] - (capacity - whole[:, None])
    pages, counts = right_align(whole, capacity, page, layers)
    return Selection(pages, counts, tail=whole * self.page_size)
