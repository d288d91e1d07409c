"""The inner step of the Triton kernels: a tile of packed rows meets a block of slots.

Every shape that Triton loads or stores is a power of two, and its matrix unit wants 16 rows.
"""

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu

from pallas_kernels.masking import NOTHING

PARAMETERS = plgpu.CompilerParams(num_warps=4, num_stages=2)
MOST_ROWS = 128
HEAD_SIZES = (32, 64, 128, 256)


def tile_rows(q: jax.Array, k: jax.Array) -> int:
  """Rows of the tile that G * T rows are padded to."""
  return max(16, pl.next_power_of_2(q.shape[1] // k.shape[1] * q.shape[2]))


def block_size(k: jax.Array) -> int:
  """Slots of a block: two stages of keys and values fit the shared memory of Ampere and Ada."""
  return min(64, 16_384 // (k.shape[3] * k.dtype.itemsize))


def unsupported(q: jax.Array, k: jax.Array) -> str | None:
  """Why no Triton kernel takes these queries and this cache, or None."""
  if q.shape[3] not in HEAD_SIZES:
    return f"head size {q.shape[3]} is none of {HEAD_SIZES}."
  if tile_rows(q, k) > MOST_ROWS:
    return f"the rows of a group of query heads are more than {MOST_ROWS}."
  if k.dtype not in (jnp.float32, jnp.bfloat16, jnp.float16) or q.dtype != k.dtype:
    return f"queries of {q.dtype} over a cache of {k.dtype}."
  if k.shape[2] % block_size(k):
    return f"{k.shape[2]} slots are not a multiple of {block_size(k)}."
  return None


def nothing(rows: int, size: int):
  """The state (weighted values, largest logit, sum of weights) before the first block."""
  zeros = jnp.zeros((rows,), jnp.float32)
  return jnp.zeros((rows, size), jnp.float32), jnp.full((rows,), NOTHING, jnp.float32), zeros


def load(ref, first: jax.Array, readable):
  """Rows from `first` on of ref [S, D]; zeros, unread, where not readable."""
  at = pl.ds(first, readable.shape[0])
  return plgpu.load(ref.at[at, :], mask=readable[:, None], other=0.0)


def gather(ref, slots, readable):
  """Rows `slots` of ref [S, D]; zeros, unread, where not readable."""
  shape = slots.shape[0], ref.shape[1]
  wide = lambda x: jnp.broadcast_to(x[:, None], shape)
  column = jnp.broadcast_to(jnp.arange(shape[1])[None, :], shape)
  return plgpu.load(ref.at[wide(slots), column], mask=wide(readable), other=0.0)


def masked_logits(q, k, visible):
  """f32[rows, slots]; NOTHING where a row does not see a slot."""
  logits = plgpu.dot(q, k, trans_b=True, precision=jax.lax.Precision.HIGHEST) * q.shape[1] ** -0.5
  return jnp.where(visible, logits, NOTHING)


def attend(state, logits, v):
  """The state after a block of slots (online softmax: arXiv 1805.02867)."""
  out, largest, total = state
  new = jnp.maximum(largest, logits.max(axis=1))
  weights = jnp.exp(logits - new[:, None])
  fade = jnp.exp(largest - new)
  seen = plgpu.dot(weights.astype(v.dtype), v, precision=jax.lax.Precision.HIGHEST)
  return out * fade[:, None] + seen, new, total * fade + weights.sum(axis=1)


def store_partial(state, out_ref, lse_ref):
  """Writes a split's normalised values and log-sum-exp, for `packing.merge`."""
  out, largest, total = state
  safe = jnp.where(total > 0, total, 1.0)
  out_ref[...] = out / safe[:, None]
  lse_ref[...] = largest + jnp.log(safe)
