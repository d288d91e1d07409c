"""What a selector is: which entries of the KV cache drafts attend to, as pure functions of a state.

    state = init(observation)                    after the prompt's last row
    selection = select(state, lengths)           at the start of a round
    state = observe(state, observation)          after a verification

A selection names *pages*: runs of `page_size` cache entries, single tokens at page size 1. It may
name only entries that can no longer be rolled back; everything from `tail` on is attended densely,
so a selection never needs repair. It holds for a round and is gathered once (`draft.py`). A rule
that selects anew with every draft token's own query cannot be gathered ahead; it belongs in the
draft's `attend`, beside the one that reads the scratch.

A selector from outside the tree is any class or function called with `budget` and `page_size` that
returns such an object; name it by a dotted path.
"""

from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax.numpy as jnp

from models.axes import Array, Float, Int, Lengths
from models.decoding.selectors.budget import Budget
from pallas_kernels.attention_with_mass import AttentionWithMass


class Observation(NamedTuple):
  """What a verification of T rows saw: the cache's `lengths` valid slots and T rows behind them.

  `mass` holds the selector's own `score` of every layer, and None where it asks for no rows.
  `accepted` counts the drafts that stood, so rows 0 to `accepted` are of the text.
  """

  mass: Float[Array, "L B Z R P"] | None
  lengths: Lengths
  rows: int
  accepted: Lengths


class Selection(NamedTuple):
  """Pages to attend to, ascending and behind -1 where fewer than E are selected.

  `pages` has one set per key/value head, or one (Z = 1) that all heads share. `counts` says how
  many are selected, `tail` which position is the first that is attended densely.
  """

  pages: Int[Array, "L B Z E"]
  counts: Int[Array, "L B"]
  tail: Lengths


@runtime_checkable
class Selector(Protocol):
  """A frozen dataclass: settings only, hashable, so that a compiled program can be made for it."""

  @property
  def budget(self) -> Budget: ...

  @property
  def page_size(self) -> int: ...

  def rows_scored(self, rows: int) -> tuple[int, ...]:
    """Which of a verification's rows it wants the masses of; () for none."""
    ...

  def score(self, attention: AttentionWithMass, kv_heads: int) -> Float[Array, "B Z R P"]:
    """One layer's masses reduced over heads, inside the layer. Only called if rows are wanted."""
    ...

  def init(self, observation: Observation) -> Any: ...

  def select(self, state: Any, lengths: Lengths, layers: int, slots: int) -> Selection: ...

  def observe(self, state: Any, observation: Observation) -> Any: ...


class Unscored:
  """A rule that looks at positions alone: it asks for no rows and keeps no state."""

  def rows_scored(self, rows: int) -> tuple[int, ...]:
    del rows
    return ()

  def score(self, attention: AttentionWithMass, kv_heads: int) -> Float[Array, "B Z R P"]:
    raise TypeError(f"{type(self).__name__} asks for no rows, so there is nothing to score.")

  def init(self, observation: Observation) -> None:
    del observation

  def observe(self, state: None, observation: Observation) -> None:
    del state, observation


def pages_for(tokens: int, page_size: int) -> int:
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
