"""Selection by the attention mass that verifications measured: one class, each rule a setting.

`specattn` is SpecAttn (arXiv 2602.07223; its second version calls it Vegas) as its authors' code
has it: every verification scores the cache by the softmax weights of its first and last row, mean
over all query heads, and the next drafts of a layer share the top tokens. The rule in their words:
a rejected last row still votes, the budget is a share of the cache with the drafts in it, and the
tail behind the candidates is not charged to it.
"""

import dataclasses
from typing import Literal, NamedTuple

import jax.numpy as jnp

from models.axes import Array, Float, Lengths
from models.decoding.selectors.base import Observation, Selection, pages_for
from models.decoding.selectors.budget import Budget
from pallas_kernels.attention_with_mass import AttentionWithMass
from pallas_kernels.selection.api import select_pages


class ScoredState(NamedTuple):
  """`mass` of each page, from verifications whose candidates were the slots below `limits`.

  `seen` is the cache's length with the verified rows in it, of which the budget is a share.
  """

  mass: Float[Array, "L B Z P"]
  limits: Lengths
  seen: Lengths


@dataclasses.dataclass(frozen=True)
class Scored:
  """The top pages by measured mass.

  Attributes:
    rows: which verification rows vote: the first and the last, or all.
    rejected_rows_vote: or only rows 0 to `accepted`, which are of the text.
    heads: one set of pages for `all` heads, by the mean over all query heads; or one for each
      `group` of query heads that share a key/value head.
    decay: what a verification leaves of the mass before it: 0 forgets, 1 accumulates.
    sink, recent: tokens at the start and the end of the candidates that are always selected,
      within the budget.
    charge_tail: whether verified tokens behind the candidates count towards the budget.
  """

  budget: Budget
  page_size: int = 1
  rows: Literal["ends", "all"] = "ends"
  rejected_rows_vote: bool = True
  heads: Literal["all", "group"] = "all"
  decay: float = 0.0
  sink: int = 0
  recent: int = 0
  charge_tail: bool = False

  def rows_scored(self, rows: int) -> tuple[int, ...]:
    return tuple(range(rows)) if self.rows == "all" or rows == 1 else (0, rows - 1)

  def score(self, attention: AttentionWithMass, kv_heads: int) -> Float[Array, "B Z R P"]:
    assert attention.page_lse is not None
    lse = attention.lse[:, :, jnp.array(self.rows_scored(attention.lse.shape[2]))]
    weight = jnp.exp(attention.page_lse - lse[..., None])
    sets = 1 if self.heads == "all" else kv_heads
    return weight.reshape(weight.shape[0], sets, -1, *weight.shape[2:]).mean(axis=2)

  def init(self, observation: Observation) -> ScoredState:
    return self._state(self._votes(observation), observation)

  def observe(self, state: ScoredState, observation: Observation) -> ScoredState:
    mass = self._votes(observation)
    return self._state(mass + self.decay * state.mass if self.decay else mass, observation)

  def select(self, state: ScoredState, lengths: Lengths, layers: int, slots: int) -> Selection:
    capacity = pages_for(self.budget.at(slots), self.page_size)
    budget = jnp.minimum(self.budget.of(state.seen), self.budget.at(slots))
    if self.charge_tail:
      budget = jnp.maximum(budget - (lengths - state.limits), 0)
    limits = state.limits // self.page_size
    counts = -(-budget // self.page_size)
    chosen = [
      select_pages(self._with_kept(mass, limits), limits, counts, capacity=capacity)
      for mass in state.mass
    ]
    return Selection(
      jnp.stack([pages for pages, _ in chosen]),
      jnp.stack([count for _, count in chosen]),
      tail=limits * self.page_size,
    )

  def _votes(self, observation: Observation) -> Float[Array, "L B Z P"]:
    """The mean over the rows that vote."""
    mass = observation.mass
    assert mass is not None
    if self.rejected_rows_vote:
      return mass.mean(axis=3)
    scored = jnp.array(self.rows_scored(observation.rows))
    votes = (scored[None, :] <= observation.accepted[:, None]).astype(mass.dtype)
    return jnp.einsum("lbzrp,br->lbzp", mass, votes) / votes.sum(axis=1)[None, :, None, None]

  def _state(self, mass: Array, observation: Observation) -> ScoredState:
    # The first row's slot is written for good; the drafts behind it may yet be rolled back.
    return ScoredState(mass, observation.lengths + 1, observation.lengths + observation.rows)

  def _with_kept(self, mass: Float[Array, "B Z P"], limits: Lengths) -> Float[Array, "B Z P"]:
    """Mass with the sink and the recent tokens' pages above everything."""
    if not self.sink and not self.recent:
      return mass
    page = jnp.arange(mass.shape[-1])[None, :]
    recent = limits[:, None] - pages_for(self.recent, self.page_size)
    kept = (page < pages_for(self.sink, self.page_size)) | (page >= recent)
    return jnp.where(kept[:, None], jnp.inf, mass)


def specattn(budget: Budget, page_size: int = 1) -> Scored:
  """The published rule; a page size above 1 scores whole pages by their summed weight."""
  return Scored(budget, page_size)
