"""Selection by the attention mass that verifications measured: one class, each rule a setting.

As its defaults stand, the rule is SpecAttn's (arXiv 2602.07223; its second version calls it Vegas)
in its authors' code: every verification scores the cache by the softmax weights of its first and
last row, mean over all query heads, and the next drafts of a layer share the top tokens. A rejected
last row still votes, the budget is a share of the cache with the drafts in it, and the tail behind
the candidates is not charged to it. The other rules are entries of `SELECTORS`.
"""

import dataclasses
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp

from models.axes import Array, Float, Int, Lengths
from models.decoding.selectors.base import Observation, RoundSettings, Selection, pages_for
from pallas_kernels.selection.api import select_pages


class ScoredState(NamedTuple):
  """`mass` of each page, from verifications whose candidates were the slots below `limits`.

  `seen` is the cache's length with the verified rows in it, of which the budget is a share.
  """

  mass: Float[Array, "L B Z P"]
  limits: Lengths
  seen: Lengths


@dataclasses.dataclass(frozen=True)
class Scored(RoundSettings):
  """The top pages by measured mass.

  Attributes:
    rows: which verification rows vote: the first and the last (`ends`), `all`, `first` or `last`.
    rejected_rows_vote: or only rows 0 to `accepted`, which are of the text, and always the first.
    head_sets: one set of pages for `all` heads, or one for each `group` of query heads that share a
      key/value head.
    head_aggregation: a set's mass is the `mean` over its query heads, or the `max`.
    metric: softmax `weight`, or the raw `logit` (a page's log-sum-exp), which is neither carried on
      nor spread: no decay, no smoothing, no coverage.
    decay: what a verification leaves of the mass before it: 0 forgets, 1 accumulates.
    sink: tokens at the start that are always selected, within the budget.
    recent: the same of the candidates' end; a share of the budget if it is a float.
    smoothing, smoothing_kind: entries (pages) of a pool, `mean` or `max`, over which a score is
      spread before the top is taken; 1 spreads nothing.
    charge_tail: whether what the first draft sees behind the candidates counts towards the budget.
    coverage: share of the measured mass at which a layer has enough; the budget is then its cap.
    prompt_rows: rows at the prompt's end that vote for the first selection.
  """

  rows: Literal["ends", "all", "first", "last"] = "ends"
  rejected_rows_vote: bool = True
  head_sets: Literal["all", "group"] = "all"
  head_aggregation: Literal["mean", "max"] = "mean"
  metric: Literal["weight", "logit"] = "weight"
  decay: float = 0.0
  sink: int = 0
  recent: int | float = 0
  smoothing: int = 1
  smoothing_kind: Literal["mean", "max"] = "mean"
  charge_tail: bool = False
  coverage: float | None = None
  prompt_rows: int = 1

  def __post_init__(self):
    super().__post_init__()
    for name, least in (("sink", 0), ("recent", 0), ("smoothing", 1), ("prompt_rows", 1)):
      if not getattr(self, name) >= least:
        raise ValueError(f"--{name}={getattr(self, name)} must be at least {least}.")
    if isinstance(self.recent, float) and not self.recent <= 1:
      raise ValueError(f"--recent={self.recent} is more than the whole budget: give at most 1.0.")
    if not 0 <= self.decay <= 1:
      raise ValueError(f"--decay={self.decay} must be in [0, 1].")
    # A page not yet written has a log-sum-exp of "nothing", which must not be carried or spread.
    if self.metric == "logit" and (self.decay or self.smoothing > 1):
      name = "decay" if self.decay else "smoothing"
      raise ValueError(f"--{name} adds up attention weights: leave out --metric=logit.")
    if self.coverage is None:
      return
    if not 0 < self.coverage <= 1:
      raise ValueError(f"--coverage={self.coverage} must be in (0, 1].")
    if self.metric == "logit":
      raise ValueError("--coverage is a share of attention weights: leave out --metric=logit.")

  def rows_scored(self, rows: int) -> tuple[int, ...]:
    if self.rows == "all" or rows == 1:
      return tuple(range(rows))
    return {"ends": (0, rows - 1), "first": (0,), "last": (rows - 1,)}[self.rows]

  def score(
    self, page_lse: Float[Array, "B H R P"], lse: Float[Array, "B H R"], kv_heads: int
  ) -> Float[Array, "B Z R P"]:
    mass = page_lse if self.metric == "logit" else jnp.exp(page_lse - lse[..., None])
    sets = 1 if self.head_sets == "all" else kv_heads
    of_set = mass.reshape(mass.shape[0], sets, -1, *mass.shape[2:])
    return of_set.mean(axis=2) if self.head_aggregation == "mean" else of_set.max(axis=2)

  def pool(self, mass: Float[Array, "B Z R P"]) -> Float[Array, "B Z Q P"]:
    return mass.sum(axis=2, keepdims=True) if self.rejected_rows_vote else mass

  def init(self, observation: Observation) -> ScoredState:
    return self._state(self._votes(observation), observation)

  def observe(self, state: ScoredState, observation: Observation) -> ScoredState:
    mass = self._votes(observation)
    return self._state(mass + self.decay * state.mass if self.decay else mass, observation)

  def select(self, state: ScoredState, lengths: Lengths, layers: int, slots: int) -> Selection:
    del layers
    most = self.budget.at(slots)
    capacity = pages_for(most, self.page_size)
    budget = jnp.minimum(self.budget.of(state.seen), most)
    if self.charge_tail:  # of all that the first draft could see, its own entry among it
      behind = lengths + 1 - state.limits
      budget = jnp.maximum(jnp.minimum(self.budget.of(lengths + 1), most) - behind, 0)
    limits = state.limits // self.page_size
    counts = jnp.minimum(pages_for(budget, self.page_size), limits)
    chosen = [self._select_layer(mass, limits, counts, capacity) for mass in state.mass]
    return Selection(
      jnp.stack([pages for pages, _ in chosen]),
      jnp.stack([count for _, count in chosen]),
      tail=limits * self.page_size,
    )

  def _select_layer(
    self, mass: Float[Array, "B Z P"], limits: Lengths, counts: Lengths, capacity: int
  ) -> tuple[Int[Array, "B Z E"], Int[Array, " B"]]:
    page = jnp.arange(mass.shape[-1])[None, :]
    eligible = page < limits[:, None]
    sink = pages_for(self.sink, self.page_size)
    latest = page >= (limits - self._recent_pages(counts, sink))[:, None]
    kept = eligible & (latest | (page < sink))
    if self.smoothing > 1:
      mass = smooth(jnp.where(latest[:, None], 0.0, mass), self.smoothing, self.smoothing_kind)
    ranked = jnp.where(kept[:, None], jnp.inf, mass)
    if self.coverage is not None:
      mass = jnp.where(eligible[:, None], mass, 0.0)
      counts = jnp.minimum(counts, covering(mass, ranked, self.coverage, capacity))
    return select_pages(ranked, limits, counts, capacity=capacity)

  def _recent_pages(self, counts: Lengths, sink: int) -> Lengths:
    """As many as were asked for and there is budget for behind the sink."""
    if isinstance(self.recent, float):
      asked = jnp.ceil(self.recent * counts).astype(jnp.int32)
    else:
      asked = jnp.full_like(counts, pages_for(self.recent, self.page_size))
    return jnp.minimum(asked, jnp.maximum(counts - sink, 0))

  def _votes(self, observation: Observation) -> Float[Array, "L B Z P"]:
    """The sum over the rows that vote."""
    mass = observation.mass
    assert mass is not None
    if self.rejected_rows_vote:
      return mass[:, :, :, 0]
    scored = jnp.array(self.rows_scored(observation.rows))
    votes = (scored[None, :] <= observation.accepted[:, None]) | (scored == scored[0])[None, :]
    return jnp.where(votes[None, :, None, :, None], mass, 0.0).sum(axis=3)

  def _state(self, mass: Array, observation: Observation) -> ScoredState:
    # The first row's slot is written for good; the drafts behind it may yet be rolled back.
    return ScoredState(mass, observation.lengths + 1, observation.lengths + observation.rows)


def smooth(mass: Float[Array, "B Z P"], width: int, kind: str) -> Float[Array, "B Z P"]:
  """Each page's mean or maximum over `width` pages around it; beyond the ends there is nothing."""
  around = ((0, 0), (0, 0), ((width - 1) // 2, width // 2))
  window = (1, 1, width)
  if kind == "max":
    return jax.lax.reduce_window(mass, -jnp.inf, jax.lax.max, window, (1, 1, 1), around)
  return jax.lax.reduce_window(mass, 0.0, jax.lax.add, window, (1, 1, 1), around) / width


def covering(
  mass: Float[Array, "B Z P"], ranked: Float[Array, "B Z P"], share: float, capacity: int
) -> Int[Array, " B"]:
  """The fewest pages, in the order of `ranked`, that hold `share` of the mass in every set."""
  _, order = jax.lax.top_k(ranked, min(capacity, mass.shape[-1]))
  held = jnp.cumsum(jnp.take_along_axis(mass, order, axis=-1), axis=-1)
  enough = held >= share * mass.sum(axis=-1, keepdims=True)
  first = jnp.where(enough.any(axis=-1), enough.argmax(axis=-1) + 1, capacity)
  return first.max(axis=1).astype(jnp.int32)
