"""Drafting: a step of the model at a time, each layer attending to what was selected for it.

A selection that holds for a round is gathered once into a compact scratch, to which every draft
step attends densely:

    scratch of one layer, [B, K, E * page_size + tail slots, D]

       unused  |  selected entries  |  verified tail  |  the draft's own  |  room
               ^ starts             ^ E * page_size   ^ behind            ^

Selected entries are right-aligned against the tail, so one range [start, end) per sequence says
what a draft step sees, and any dense attention serves. The tail is copied from the cache, where it
was written by verifications: a draft never reads what another round's draft wrote. Where a
selection holds for several rounds the scratch is kept with it, and after each round only the rows
just verified are copied, over the drafts' own.

Layers that are dense, and those of a selector that selects with the draft's own query, attend to
the cache in place. There drafts write the slots that the verification will overwrite.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from models.axes import Array, CachedKeysOrValues, Float, Int, KeysOrValues, Lengths, Queries
from models.decoding.forward import row_positions, run_layers
from models.decoding.sampling import Sampler, SequenceKeys, draw
from models.decoding.selectors.base import InLayerSelector, Selection
from models.kv_cache import KVCache, append_rows
from models.transformer import Parameters, Transformer
from pallas_kernels.attention_with_mass.api import attention_with_mass
from pallas_kernels.gather_pages.api import gather_pages
from pallas_kernels.page_attention.api import page_attention

WHOLE = 128  # the scratch's slots are a multiple: attention runs a fifth faster on a CPU

# (queries, keys, values of the row, what a layer attends to, step) -> (out, the same with the row)
Read = Callable[[Queries, KeysOrValues, KeysOrValues, Any, Any], tuple[Queries, Any]]


class Source(NamedTuple):
  """What one layer's drafts attend to, and how."""

  keys: CachedKeysOrValues
  values: CachedKeysOrValues
  read: Read
  in_cache: bool  # or in a scratch


# Keys and values [B, K, N, D] of every layer that is not dense.
Scratch = tuple[tuple[CachedKeysOrValues, CachedKeysOrValues], ...]


def tail_slots(draft_length: int, page_size: int, refresh: int, wanted: int) -> int:
  """The longest tail of a selection: a last page that is not whole, what was accepted since the
  selection's verification, and the draft's own rows."""
  return page_size - 1 + accepted_since(draft_length, refresh, wanted) + draft_length


def accepted_since(draft_length: int, refresh: int, wanted: int) -> int:
  """The most tokens between a selection's candidates and the round that it is last used in."""
  rounds = draft_length + (refresh - 1) * (draft_length + 1)
  return min(rounds, wanted) if refresh else wanted


def dense(cache: KVCache, layer: int) -> Source:
  """A layer that attends to everything."""

  def read(q, k, v, cached, i):
    at = cache.lengths + i
    cached = append_rows(cached[0], k, at), append_rows(cached[1], v, at)
    return attention_with_mass(q, *cached, at + 1).out, cached

  return Source(cache.keys[layer], cache.values[layer], read, in_cache=True)


def gather(
  cache: KVCache, selection: Selection, dense_layers: int, page_size: int, room: int
) -> Scratch:
  """Copies of a selection and of the verified tail, for the layers behind the dense ones.

  `room` slots are made for the tail. The cache needs as many behind the tail's start.
  """
  selected = selection.pages.shape[-1] * page_size
  padding = ((0, 0), (0, 0), (0, -(selected + room) % WHOLE), (0, 0))
  slice_of = lambda one, start: jax.lax.dynamic_slice_in_dim(one, start, room, axis=1)

  def compact(cached: CachedKeysOrValues, pages: Int[Array, "B Z E"]) -> KeysOrValues:
    recent = jnp.pad(jax.vmap(slice_of)(cached, selection.tail), padding)
    return jnp.concatenate([gather_pages(cached, pages, page_size=page_size), recent], axis=2)

  layers = zip(cache.keys[dense_layers:], cache.values[dense_layers:], selection.pages, strict=True)
  return tuple((compact(keys, pages), compact(values, pages)) for keys, values, pages in layers)


def take_verified(
  scratch: Scratch,
  selection: Selection,
  cache: KVCache,
  begin: Lengths,
  rows: int,
  dense_layers: int,
  page_size: int,
) -> Scratch:
  """The scratch with the cache's rows [begin, begin + rows) where drafts had written their own."""
  at = _behind(selection, begin, page_size)
  slice_of = lambda one, start: jax.lax.dynamic_slice_in_dim(one, start, rows, axis=1)
  taken = lambda old, cached: append_rows(old, jax.vmap(slice_of)(cached, begin), at)
  layers = zip(scratch, cache.keys[dense_layers:], cache.values[dense_layers:], strict=True)
  return tuple((taken(old[0], keys), taken(old[1], values)) for old, keys, values in layers)


def _behind(selection: Selection, lengths: Lengths, page_size: int) -> Lengths:
  """The scratch's first slot behind the verified tail."""
  return selection.pages.shape[-1] * page_size + lengths - selection.tail


def gathered(
  keys: CachedKeysOrValues, values: CachedKeysOrValues, starts: Lengths, behind: Lengths
) -> Source:
  """A layer that attends to its part of a scratch, from `starts` on; drafts go `behind`."""

  def read(q, k, v, scratch, i):
    at = behind + i
    scratch = append_rows(scratch[0], k, at), append_rows(scratch[1], v, at)
    return attention_with_mass(q, *scratch, at + 1, starts=starts).out, scratch

  return Source(keys, values, read, in_cache=False)


def selected_by_query(
  cache: KVCache, layer: int, selector: InLayerSelector, state: Any, draft_length: int
) -> Source:
  """A layer that selects with each draft token's own query, and reads the pages in place."""
  page_size = selector.page_size
  tail_starts = cache.lengths // page_size * page_size

  def read(q, k, v, cached, i):
    at = cache.lengths + i
    cached = append_rows(cached[0], k, at), append_rows(cached[1], v, at)
    pages = selector.select_in_layer(state, q, cached[0], cache.lengths, at + 1)
    seen = page_attention(
      q, *cached, at + 1, pages, tail_starts, page_size=page_size, tail=draft_length + page_size - 1
    )
    return seen.out, cached

  return Source(cache.keys[layer], cache.values[layer], read, in_cache=True)


def sources_of_selection(
  cache: KVCache, selection: Selection, scratch: Scratch, dense_layers: int, page_size: int
) -> list[Source]:
  """Each layer's, for a selection of the layers behind the dense ones and its scratch."""
  sources = [dense(cache, layer) for layer in range(dense_layers)]
  behind = _behind(selection, cache.lengths, page_size)
  for (keys, values), counts in zip(scratch, selection.counts, strict=True):
    starts = (selection.pages.shape[-1] - counts) * page_size
    sources.append(gathered(keys, values, starts, behind))
  return sources


def sources_by_query(
  cache: KVCache, selector: InLayerSelector, state: Any, draft_length: int
) -> list[Source]:
  """Each layer's, for a selector that selects in the layer."""
  sources = [dense(cache, layer) for layer in range(selector.dense_layers)]
  for layer in range(selector.dense_layers, len(cache.keys)):
    of_layer = None if state is None else state[layer - selector.dense_layers]
    sources.append(selected_by_query(cache, layer, selector, of_layer, draft_length))
  return sources


class Drafts(NamedTuple):
  """`tokens` [B, gamma]; `hidden` [B, gamma, M], from which `draft_distribution` makes what each
  was drawn from (None where greedy); `cache`, in which drafts may have written stale slots, and
  `scratch`, in which they have (of the layers that read from one)."""

  tokens: Int[Array, "B G"]
  hidden: Float[Array, "B G M"] | None
  cache: KVCache
  scratch: Scratch


def no_drafts(cache: KVCache) -> Drafts:
  """A round without drafts."""
  return Drafts(jnp.zeros((cache.lengths.shape[0], 0), jnp.int32), None, cache, ())


def draft_distribution(
  model: Transformer, resident: Parameters, sampler: Sampler, hidden: Float[Array, "B M"]
) -> Float[Array, "B V"]:
  """What a draft token is drawn from, from the last block's output of one row.

  Between barriers, so that it is one program wherever it is compiled: what acceptance computes anew
  has the bits of what the draft was drawn from.
  """
  hidden = jax.lax.optimization_barrier(hidden)
  logits = model.logits(resident, hidden[:, None])[:, 0]
  return jax.lax.optimization_barrier(sampler.probabilities(logits))


def draft(
  model: Transformer,
  parameters: Parameters,
  sampler: Sampler,
  cache: KVCache,
  sources: list[Source],
  token: Int[Array, " B"],
  keys: SequenceKeys,
  draft_length: int,
) -> Drafts:
  """Drafts `draft_length` tokens behind `token`, which stands behind the cache's valid slots."""

  def step(carry, i):
    attended, token = carry

    def attend(layer):
      read = sources[layer].read
      return lambda q, k, v: read(q, k, v, attended[layer], i)

    positions = row_positions(model, cache.lengths + i, 1)
    x, written = run_layers(model, parameters, token[:, None], positions, attend)
    if sampler.greedy:
      logits = model.logits(parameters["resident"], x)[:, 0]
      drafted, hidden = logits.argmax(axis=-1).astype(jnp.int32), None
    else:
      hidden = x[:, 0]
      q = draft_distribution(model, parameters["resident"], sampler, hidden)
      drafted = draw(jax.vmap(jax.random.fold_in, (0, None))(keys, i), q)
    return (written, drafted), (drafted, hidden)

  begin = (tuple((source.keys, source.values) for source in sources), token)
  steps = jnp.arange(draft_length, dtype=jnp.int32)
  (attended, _), (drafts, hidden) = jax.lax.scan(step, begin, steps)
  kept = [
    pair if source.in_cache else (cache.keys[layer], cache.values[layer])
    for layer, (source, pair) in enumerate(zip(sources, attended, strict=True))
  ]
  written, values = zip(*kept, strict=True)
  hidden = None if hidden is None else hidden.swapaxes(0, 1)
  pairs = zip(sources, attended, strict=True)
  scratch = tuple(pair for source, pair in pairs if not source.in_cache)
  return Drafts(drafts.T, hidden, KVCache(written, values, cache.lengths), scratch)
