"""Drafting: gather a selection once into a compact scratch, then attend to that scratch densely.

    scratch of one layer, [B, K, E * page_size + tail slots, D]

       unused  |  selected entries  |  verified tail  |  the draft's own  |  room
               ^ starts             ^ E * page_size   ^ behind            ^

Selected entries are right-aligned against the tail, so one range [start, end) per sequence says
what a draft step sees, and any dense attention serves. The tail is copied from the cache, where it
was written by verifications: a draft never reads what another draft wrote.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from models.axes import Array, CachedKeysOrValues, Float, Int, KeysOrValues, Lengths
from models.decoding.forward import row_positions, run_layers
from models.decoding.sampling import Sampler, SequenceKeys, draw
from models.decoding.selectors.base import Selection
from models.kv_cache import KVCache, append_rows
from models.transformer import Parameters, Transformer
from pallas_kernels.attention_with_mass.api import attention_with_mass
from pallas_kernels.gather_pages.api import gather_pages

WHOLE = 128  # the scratch's slots are a multiple: attention runs a fifth faster on a CPU


class Scratch(NamedTuple):
  """What drafts attend to; `behind` is the slot of the first draft's row, per sequence."""

  keys: tuple[CachedKeysOrValues, ...]
  values: tuple[CachedKeysOrValues, ...]
  starts: Int[Array, "L B"]
  behind: Lengths


def tail_slots(draft_length: int, page_size: int) -> int:
  """The longest tail: a candidates' last page that is not whole, the drafts accepted since the
  selection's verification, and the draft's own rows."""
  return 2 * draft_length + page_size - 1


def gather(cache: KVCache, selection: Selection, page_size: int, tail: int) -> Scratch:
  """Copies the selection and the verified tail of every layer; `tail` slots are made for the tail.

  The cache needs `tail` slots behind the longest sequence's last valid one.
  """
  selected = selection.pages.shape[-1] * page_size
  padding = ((0, 0), (0, 0), (0, -(selected + tail) % WHOLE), (0, 0))
  slice_of = lambda one, start: jax.lax.dynamic_slice_in_dim(one, start, tail, axis=1)

  def compact(cached: CachedKeysOrValues, pages: Int[Array, "B Z E"]) -> KeysOrValues:
    recent = jnp.pad(jax.vmap(slice_of)(cached, selection.tail), padding)
    return jnp.concatenate([gather_pages(cached, pages, page_size=page_size), recent], axis=2)

  return Scratch(
    tuple(compact(k, pages) for k, pages in zip(cache.keys, selection.pages, strict=True)),
    tuple(compact(v, pages) for v, pages in zip(cache.values, selection.pages, strict=True)),
    starts=selected - selection.counts * page_size,
    behind=selected + cache.lengths - selection.tail,
  )


def draft(
  model: Transformer,
  parameters: Parameters,
  sampler: Sampler,
  scratch: Scratch,
  token: Int[Array, " B"],
  lengths: Lengths,
  keys: SequenceKeys,
  draft_length: int,
) -> tuple[Int[Array, "B G"], Float[Array, "B G V"] | None]:
  """Drafts `draft_length` tokens behind `token`, which stands at position `lengths`.

  Returns:
    The drafts [B, gamma], and the distributions they were drawn from (None where greedy).
  """

  def step(carry, i):
    keys_and_values, token = carry

    def attend(layer):
      def attend_layer(q, k, v):
        at = scratch.behind + i
        cached_keys, cached_values = keys_and_values[layer]
        cached = append_rows(cached_keys, k, at), append_rows(cached_values, v, at)
        seen = attention_with_mass(q, *cached, at + 1, starts=scratch.starts[layer])
        return seen.out, cached

      return attend_layer

    positions = row_positions(model, lengths + i, 1)
    x, written = run_layers(model, parameters, token[:, None], positions, attend)
    logits = model.logits(parameters["resident"], x)[:, 0]
    if sampler.greedy:
      drafted, q = logits.argmax(axis=-1).astype(jnp.int32), None
    else:
      q = sampler.probabilities(logits)
      drafted = draw(jax.vmap(jax.random.fold_in, (0, None))(keys, i), q)
    return (written, drafted), (drafted, q)

  begin = (tuple(zip(scratch.keys, scratch.values, strict=True)), token)
  _, (drafts, q) = jax.lax.scan(step, begin, jnp.arange(draft_length, dtype=jnp.int32))
  return drafts.T, None if q is None else q.swapaxes(0, 1)
