"""What a selector is: which entries of the KV cache drafts attend to, as pure functions of a state.

    state = init(observation)                    after the prompt's last row
    selection = select(state, lengths, ...)      at the start of a round
    state = observe(state, observation)          after a verification

A selection names *pages*: runs of `page_size` cache entries, single tokens at page size 1. It may
name only entries that can no longer be rolled back; everything from `tail` on is attended densely,
so a selection never needs repair.

There are two kinds. A `Selector` selects for whole rounds, and what it selects is gathered once
(`draft.py`). An `InLayerSelector` selects anew with the query of every drafted token, inside each
layer, and its pages are read in place.

A selector from outside the tree is any class or function called with `budget`, and with the
settings that the user gives, by name; it returns such an object. Name it by a dotted path.
"""

import dataclasses
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax.numpy as jnp

from models.axes import Array, CachedKeysOrValues, Float, Int, Lengths, Queries
from models.decoding.selectors.budget import Budget
from models.kv_cache import KVCache


class Observation(NamedTuple):
  """What a verification of T rows saw: the cache's `lengths` valid slots and T rows behind them.

  `mass` holds the selector's own scores of every layer that it selects for, and None where it asks
  for no rows. `accepted` counts the drafts that stood, so rows 0 to `accepted` are of the text.
  `cache` holds the rows' keys and values, and None where nobody looks.
  """

  mass: Float[Array, "L B Z R P"] | None
  lengths: Lengths
  rows: int
  accepted: Lengths
  cache: KVCache | None = None


class Selection(NamedTuple):
  """Pages to attend to, ascending and behind -1 where fewer than E are selected.

  `pages` has one set per key/value head, or one (Z = 1) that all heads share. `counts` says how
  many are selected, `tail` which position is the first that is attended densely.
  """

  pages: Int[Array, "L B Z E"]
  counts: Int[Array, "L B"]
  tail: Lengths


@dataclasses.dataclass(frozen=True)
class Settings:
  """What every rule has.

  Attributes:
    budget: entries that a draft attends to, the tail not included.
    page_size: entries selected as one; a power of two.
    dense_layers: so many layers, from the first, attend to everything.
  """

  budget: Budget
  page_size: int = 1
  dense_layers: int = 0

  def __post_init__(self):
    if self.page_size < 1 or self.page_size & (self.page_size - 1):
      raise ValueError(f"--page_size={self.page_size} must be a power of two, such as 16.")
    if self.dense_layers < 0:
      raise ValueError(f"--dense_layers={self.dense_layers} must be 0 or more.")


@dataclasses.dataclass(frozen=True)
class RoundSettings(Settings):
  """What every rule has that selects for whole rounds.

  Attributes:
    refresh: a selection holds for so many rounds; 0: for the whole text, so that what is decoded
      is all in the tail.
  """

  refresh: int = 1

  def __post_init__(self):
    super().__post_init__()
    if self.refresh < 0:
      raise ValueError(f"--refresh={self.refresh} must be 0 (never) or a number of rounds.")


@runtime_checkable
class AnySelector(Protocol):
  """A frozen dataclass: settings only, hashable, so that a compiled program can be made for it."""

  @property
  def budget(self) -> Budget: ...

  @property
  def page_size(self) -> int: ...

  @property
  def dense_layers(self) -> int: ...

  @property
  def prompt_rows(self) -> int:
    """How many of the prompt's last rows `init` wants the masses of; 1 costs nothing."""
    ...

  def rows_scored(self, rows: int) -> tuple[int, ...]:
    """Which of a verification's rows it wants the masses of; () for none."""
    ...

  def score(
    self, page_lse: Float[Array, "B H R P"], lse: Float[Array, "B H R"], kv_heads: int
  ) -> Float[Array, "B Z R P"]:
    """One layer's masses of R rows, reduced over heads. Only called if rows are wanted."""
    ...

  def pool(self, mass: Float[Array, "B Z R P"]) -> Float[Array, "B Z Q P"]:
    """Masses as they leave the layer: of one row (Q = 1) if the rule needs no more; else as is."""
    ...

  def init(self, observation: Observation) -> Any: ...

  def observe(self, state: Any, observation: Observation) -> Any: ...


@runtime_checkable
class Selector(AnySelector, Protocol):
  """Selects for whole rounds."""

  @property
  def refresh(self) -> int: ...

  def select(self, state: Any, lengths: Lengths, layers: int, slots: int) -> Selection:
    """For `layers` layers, those that are not dense."""
    ...


@runtime_checkable
class InLayerSelector(AnySelector, Protocol):
  """Selects with every draft token's own query."""

  def select_in_layer(
    self, layer: Any, q: Queries, keys: CachedKeysOrValues, lengths: Lengths, newest: Lengths
  ) -> Int[Array, "B Z E"]:
    """Pages among the whole ones below `lengths`, for the one-row query `q`.

    Args:
      layer: this layer's entry of the state, a sequence over the layers that are not dense.
      keys: the layer's cache, the row's own in it.
      lengths: entries that can no longer be rolled back.
      newest: entries up to the row's own.
    """
    ...

  def extra_reads(self) -> float:
    """What selecting reads per drafted token, as a share of the whole cache."""
    ...


class Unscored:
  """A rule that asks for no masses and keeps no state."""

  prompt_rows = 1

  def rows_scored(self, rows: int) -> tuple[int, ...]:
    del rows
    return ()

  def score(
    self, page_lse: Float[Array, "B H R P"], lse: Float[Array, "B H R"], kv_heads: int
  ) -> Float[Array, "B Z R P"]:
    raise TypeError(f"{type(self).__name__} asks for no rows, so there is nothing to score.")

  def pool(self, mass: Float[Array, "B Z R P"]) -> Float[Array, "B Z Q P"]:
    return mass

  def init(self, observation: Observation) -> None:
    del observation

  def observe(self, state: None, observation: Observation) -> None:
    del state, observation


def pages_for(tokens: Any, page_size: int) -> Any:
  """Pages that hold so many tokens; of a number or of an array of them."""
  return -(-tokens // page_size)


def right_align(
  counts: Lengths, capacity: int, page: Int[Array, "B E"], layers: int
) -> tuple[Int[Array, "L B 1 E"], Int[Array, "L B"]]:
  """One set of pages for all layers and heads: the last `counts` of `page`, -1 before them."""
  unused = jnp.arange(capacity)[None, :] < capacity - counts[:, None]
  pages = jnp.where(unused, -1, page)
  batch = counts.shape[0]
  return (
    jnp.broadcast_to(pages[None, :, None, :], (layers, batch, 1, capacity)),
    jnp.broadcast_to(counts[None, :], (layers, batch)),
  )
