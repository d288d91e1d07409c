"""Prefill in chunks of fixed size: one compiled program however long the prompts are.

A chunk's queries walk over the blocks of keys up to their own with a running maximum and sum
(arXiv 2205.14135), so that nothing larger than chunk x chunk logits per head exists at any time.

The last token of a prompt is not prefilled: it is the first token the decoding loop feeds, and
the attention mass of that row is what a selector starts from.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from models.axes import CachedKeysOrValues, Lengths, Queries, Tokens
from models.decoding.forward import row_positions, run_layers
from models.kv_cache import KVCache
from models.transformer import Parameters, Transformer

CHUNK = 512


def chunk_attention(
  q: Queries, keys: CachedKeysOrValues, values: CachedKeysOrValues, start: jax.Array
) -> Queries:
  """Causal attention of rows [start, start + T) over slots [0, start + T); T divides start."""
  batch, heads, rows, size = q.shape
  kv_heads = keys.shape[1]
  group = heads // kv_heads
  q = (q * size**-0.5).reshape(batch, kv_heads, group * rows, size)
  row = jnp.tile(jnp.arange(rows), group)
  earlier = jnp.arange(rows)[None, :] <= row[:, None]

  def block(i, carry):
    out, top, total = carry
    piece = lambda x: jax.lax.dynamic_slice_in_dim(x, i * rows, rows, axis=2)
    logits = jnp.einsum("bkrd,bksd->bkrs", q, piece(keys), preferred_element_type=jnp.float32)
    visible = earlier | (i * rows < start)
    logits = jnp.where(visible[None, None], logits, -jnp.inf)
    new_top = jnp.maximum(top, logits.max(axis=-1))
    weights = jnp.exp(logits - new_top[..., None])
    keep = jnp.exp(top - new_top)
    mixed = jnp.einsum(
      "bkrs,bksd->bkrd",
      weights.astype(values.dtype),
      piece(values),
      preferred_element_type=jnp.float32,
    )
    return out * keep[..., None] + mixed, new_top, total * keep + weights.sum(axis=-1)

  shape = (batch, kv_heads, group * rows)
  empty = (jnp.zeros((*shape, size)), jnp.full(shape, -jnp.inf), jnp.zeros(shape))
  out, _, total = jax.lax.fori_loop(0, start // rows + 1, block, empty)
  return (out / total[..., None]).reshape(batch, heads, rows, size).astype(values.dtype)


@functools.partial(jax.jit, static_argnames="model", donate_argnames="cache")
def prefill_chunk(
  model: Transformer, parameters: Parameters, cache: KVCache, tokens: Tokens, start: jax.Array
) -> KVCache:
  """Writes the keys and values of the tokens at [start, start + T) of every sequence."""
  begin = jnp.full(tokens.shape[:1], start, jnp.int32)

  def attend(layer):
    def attend_layer(q, k, v):
      put = lambda cached, new: jax.lax.dynamic_update_slice_in_dim(cached, new, start, axis=2)
      keys, values = put(cache.keys[layer], k), put(cache.values[layer], v)
      return chunk_attention(q, keys, values, start), (keys, values)

    return attend_layer

  positions = row_positions(model, begin, tokens.shape[1])
  _, written = run_layers(model, parameters, tokens, positions, attend)
  keys, values = zip(*written, strict=True)
  return KVCache(keys, values, begin + tokens.shape[1])


def prefill(
  model: Transformer,
  parameters: Parameters,
  cache: KVCache,
  prompts: Tokens,
  lengths: Lengths,
  chunk: int = CHUNK,
) -> KVCache:
  """Fills the cache with all but each prompt's last token.

  Args:
    prompts: padded behind their ends with any token, to any width up to the cache's slots.
    lengths: tokens of each prompt, at least 1.
    chunk: rows at a time; must divide the cache's slots, so that no chunk reaches past the end.
  """
  if cache.slots % chunk:
    raise ValueError(f"A cache of {cache.slots} slots is not a whole number of {chunk}-row chunks.")
  # On the host, where a new length of prompt compiles nothing.
  padded = np.pad(np.asarray(prompts), ((0, 0), (0, -prompts.shape[1] % chunk)))
  for start in range(0, int(np.asarray(lengths).max()) - 1, chunk):
    piece = padded[:, start : start + chunk]
    cache = prefill_chunk(model, parameters, cache, jnp.asarray(piece), jnp.int32(start))
  return cache.with_lengths(lengths - 1)
