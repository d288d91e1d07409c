"""Attention with mass for any backend, in the form that XLA's CPU compiler runs fastest.

The cache is viewed, without a copy, as chunks of slots, and the chunks are a batch axis of both
products: each is then small enough for the inner loops to stay in cache, and many enough to occupy
every core. `experiments.tables.kernels` measures the forms that lost beside it: one product over
the whole cache, a product a head, a product a row, values masked as a whole. Chunks of 512 and 1024
slots, and the queries on the right of the first product, are no faster.

What lies outside [start, length) may be NaN, and 0 * NaN is NaN, so values must not be read there.
Masking all of V costs a copy of it. Instead a chunk's product counts only if the chunk is wholly
inside; the chunk at each end is gathered, masked, and multiplied again.
"""

import jax
import jax.numpy as jnp

from pallas_kernels.attention_with_mass.reference import AttentionWithMass
from pallas_kernels.masking import NOTHING

CHUNK = 256  # slots
LOGIT_BYTES = 64 * 2**20  # of one pass; more rows than fit go head by head


def supports(*_, **__) -> None:
  """Every case is supported."""


def chunk_size(slots: int, page_size: int) -> int:
  """The most slots, up to CHUNK, that are whole pages and divide the cache; else all of it.

  A small cache, such as a draft's, gets smaller chunks: both ends cost a copy of one.
  """
  most = min(CHUNK, max(128, slots // 8))
  for size in range(most // page_size * page_size, 63, -page_size):
    if slots % size == 0:
      return size
  return slots


def attention(q, k, v, lengths, starts, *, rows, page_size) -> AttentionWithMass:
  """See `api.attention_with_mass`."""
  batch, heads, count, size = q.shape
  kv_heads, slots = k.shape[1:3]
  q = q.reshape(batch, kv_heads, heads // kv_heads, count, size)
  one = lambda q, k, v: _attention(q, k, v, lengths, starts, rows=rows, page_size=page_size)
  if batch * heads * count * slots * 4 <= LOGIT_BYTES:
    found = one(q, k, v)
  else:
    a_head = lambda i: one(*(jax.lax.dynamic_slice_in_dim(x, i, 1, axis=1) for x in (q, k, v)))
    found = jax.lax.map(a_head, jnp.arange(kv_heads))
    found = jax.tree.map(lambda x: jnp.moveaxis(x[:, :, 0], 0, 1), found)
  merged = lambda x: x.reshape(batch, heads, *x.shape[3:])
  return jax.tree.map(merged, found)


def _attention(q, k, v, lengths, starts, *, rows, page_size) -> AttentionWithMass:
  """Of queries [B, K, G, T, D]; every result keeps the axes K and G apart."""
  batch, kv_heads, group, count, size = q.shape
  slots = k.shape[2]
  chunk = chunk_size(slots, page_size)
  chunks = slots // chunk
  packed = q.reshape(batch, kv_heads, group * count, size)
  k, v = (x.reshape(batch, kv_heads, chunks, chunk, size) for x in (k, v))

  logits = _product("bkrd,bkcsd->bkcrs", _rows(packed), k)
  logits = logits[:, :, :, : group * count].reshape(batch, kv_heads, chunks, group, count, chunk)
  slot = jnp.arange(slots).reshape(1, chunks, 1, chunk)
  position = (lengths[:, None] - count + jnp.arange(count)[None])[:, None, :, None]
  sees = (slot >= starts[:, None, None, None]) & (slot <= position)
  logits = jnp.where(sees[:, None, :, None], logits * size**-0.5, NOTHING)

  largest = logits.max(axis=(2, 5), keepdims=True)
  weights = jnp.exp(logits - largest)
  total = weights.sum(axis=(2, 5))
  weights = weights.astype(v.dtype).reshape(batch, kv_heads, chunks, group * count, chunk)
  out = _weighted_values(weights, v, lengths, starts)
  out = out.reshape(q.shape) / total[..., None]

  largest = largest[:, :, 0, :, :, 0]
  seen = largest > NOTHING / 2
  lse = jnp.where(seen, largest + jnp.log(total), NOTHING)
  page_lse = _page_lse(logits[..., list(rows), :], page_size) if rows else None
  return AttentionWithMass(jnp.where(seen[..., None], out, 0).astype(q.dtype), lse, page_lse)


def _weighted_values(weights, v, lengths, starts):
  """Sum over chunks of weights [B, K, C, R, slots] times values; see the top of this file."""
  chunks, chunk = v.shape[2:4]
  rows = weights.shape[3]
  product = lambda weights, v: _product("bkcrs,bkcsd->bkcrd", _rows(weights), v)[..., :rows, :]
  if chunks <= 2:
    slot = jnp.arange(chunks * chunk).reshape(1, chunks, chunk)
    written = (slot >= starts[:, None, None]) & (slot < lengths[:, None, None])
    return product(weights, jnp.where(written[:, None, :, :, None], v, 0)).sum(axis=2)
  first = jnp.arange(chunks)[None] * chunk
  inside = (first >= starts[:, None]) & (first + chunk <= lengths[:, None])
  out = jnp.where(inside[:, None, :, None, None], product(weights, v), 0).sum(axis=2)

  low, high = starts // chunk, jnp.maximum(lengths - 1, 0) // chunk
  ends = jnp.stack([low, high], axis=1)
  take = lambda x: jnp.take_along_axis(x, ends[:, None, :, None, None], axis=2, mode="clip")
  slot = ends[:, :, None] * chunk + jnp.arange(chunk)[None, None]
  written = (slot >= starts[:, None, None]) & (slot < lengths[:, None, None])
  edges = product(take(weights), jnp.where(written[:, None, :, :, None], take(v), 0))
  counts = ~jnp.take_along_axis(inside, ends, axis=1, mode="clip")
  counts &= jnp.stack([jnp.ones_like(low, bool), low != high], axis=1)
  return out + jnp.where(counts[:, None, :, None, None], edges, 0).sum(axis=2)


def _product(axes, a, b):
  """In float32, which GPUs would round to fewer bits unless told."""
  return jnp.einsum(axes, a, b, preferred_element_type=jnp.float32, precision="highest")


def _rows(x):
  """One row of a 16-bit type with a row of zeros: XLA's CPU products are 8 times faster for two."""
  alone = x.shape[-2] == 1 and x.dtype.itemsize == 2
  return jnp.pad(x, [*[(0, 0)] * (x.ndim - 2), (0, 1), (0, 0)]) if alone else x


def _page_lse(logits, page_size: int):
  """Logits [B, K, C, G, R, slots] to [B, K, G, R, pages]."""
  if page_size > 1:
    pages = logits.reshape(*logits.shape[:5], -1, page_size)
    largest = pages.max(axis=-1)
    total = jnp.exp(pages - largest[..., None]).sum(axis=-1)
    logits = jnp.where(largest > NOTHING / 2, largest + jnp.log(total), NOTHING)
  logits = jnp.moveaxis(logits, 2, 4)
  return logits.reshape(*logits.shape[:4], -1)
