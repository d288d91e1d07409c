"""The KV cache: per layer one [B, K, S, D] array of keys and one of values, and how much is valid.

Slots at or beyond a sequence's length hold nothing: what was written there (a rejected draft, the
padding of a prompt) is never read and is overwritten later. To roll back is to set the lengths.

Layers are a tuple of arrays and never one stacked array, since a slice of a stack is a copy.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from models.axes import CachedKeysOrValues, KeysOrValues, Lengths
from models.config import ModelConfig
from pallas_kernels.cache_append.api import append


class KVCache(NamedTuple):
  """Keys and values of every layer; `lengths` says how many slots of each sequence are valid."""

  keys: tuple[CachedKeysOrValues, ...]
  values: tuple[CachedKeysOrValues, ...]
  lengths: Lengths

  @property
  def slots(self) -> int:
    return self.keys[0].shape[2]

  def append(
    self, layer: int, k: KeysOrValues, v: KeysOrValues
  ) -> tuple[CachedKeysOrValues, CachedKeysOrValues]:
    """The layer's keys and values with T new rows behind the valid ones; lengths stay."""
    at = self.lengths
    return append_rows(self.keys[layer], k, at), append_rows(self.values[layer], v, at)

  def with_lengths(self, lengths: Lengths) -> "KVCache":
    """Accepts appended rows (longer) or rolls back (shorter); no array but the lengths changes."""
    return self._replace(lengths=lengths)


def append_rows(
  cached: CachedKeysOrValues, new: KeysOrValues, positions: Lengths
) -> CachedKeysOrValues:
  """`append`, in place inside a loop too.

  XLA:CPU turns the scatter of a single row into a dynamic-update-slice, fuses that into the product
  that reads the cache, and then copies the whole cache every step (8 times the time at 8k tokens).
  A second row, into the slot behind that holds nothing, keeps it a scatter.
  """
  if new.shape[0] == new.shape[2] == 1:
    new = jnp.repeat(new, 2, axis=2)
  return append(cached, new, positions)


def make(config: ModelConfig, batch: int, slots: int, dtype: Any = jnp.float32) -> KVCache:
  """An empty cache."""
  shape = (batch, config.kv_heads, slots, config.head_size)
  zeros = lambda: tuple(jnp.zeros(shape, dtype) for _ in range(config.layers))
  empty = KVCache(zeros(), zeros(), jnp.zeros(batch, jnp.int32))
  # Committed to its device, as what a program returns is where parameters are: else the first call
  # of a program and the second would be compiled apart.
  return jax.device_put(empty, jax.devices()[0])


def slots_for(tokens: int, spare: int, multiple: int) -> int:
  """Slots of a cache that holds `tokens` tokens with `spare` slots behind them, rounded up.

  The spare is no nicety: rows appended past the end are lost without an error, so a round must
  always find room for the rows that it writes and for the tail that it copies.
  """
  return -(-(tokens + spare) // multiple) * multiple
