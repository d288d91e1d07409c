"""What GPU kernels share: rows packed into a tile, the cache split among programs, the merge.

The G query heads that share a key/value head and the T rows of each lie in one tile of G * T rows
(tile row r is head r // T, row r % T), so that keys and values are read once for all of them.
"""

import jax
import jax.numpy as jnp

from pallas_kernels.masking import NOTHING

PROGRAMS = 528  # wanted at once: four on each of an H100's 132 multiprocessors
SHORTEST = 256  # slots; a program with less to do than this costs more to start and merge


def pack(q: jax.Array, kv_heads: int, tile_rows: int) -> jax.Array:
  """[B, H, T, D] to [B, K, tile_rows, D], with zeros after the G * T rows."""
  batch, heads, count, size = q.shape
  q = q.reshape(batch, kv_heads, heads // kv_heads * count, size)
  return jnp.pad(q, ((0, 0), (0, 0), (0, tile_rows - q.shape[2]), (0, 0)))


def blocks_per_split(programs: int, blocks: int, block: int) -> int:
  """Blocks of `block` slots that each program takes, when `programs` share the cache's `blocks`."""
  splits = -(-PROGRAMS // programs)
  return max(-(-blocks // splits), -(-SHORTEST // block))


def merge(out: jax.Array, lse: jax.Array, q: jax.Array) -> tuple[jax.Array, jax.Array]:
  """Partial results [B, K, splits, tile rows, ...] to [B, H, T, D] and [B, H, T].

  Each split's `out` is normalised by its own `lse`; a split, or all of them, may have seen nothing.
  """
  real = q.shape[1] * q.shape[2] // out.shape[1]
  out, lse = out[:, :, :, :real], lse[..., :real]
  largest = lse.max(axis=2, keepdims=True)
  weights = jnp.exp(lse - largest)
  total = weights.sum(axis=2)
  out = (out * weights[..., None]).sum(axis=2) / total[..., None]
  seen = largest[:, :, 0] > NOTHING / 2
  lse = jnp.where(seen, largest[:, :, 0] + jnp.log(total), NOTHING)
  out = jnp.where(seen[..., None], out, 0)
  return out.reshape(q.shape).astype(q.dtype), lse.reshape(q.shape[:3])


def merge_page_lse(page_lse, shape, lengths, starts, *, unit: int, page_size: int):
  """Log-sum-exps [B, K, G * R, units of slots] as kernels write them, to `shape` [B, H, R, pages].

  Kernels do not visit units outside [start, length), whose places hold anything.
  """
  first = jnp.arange(page_lse.shape[3])[None] * unit
  visited = (first < lengths[:, None]) & (first + unit > starts[:, None])
  page_lse = jnp.where(visited[:, None, None], page_lse, NOTHING)
  if unit < page_size:
    page_lse = page_lse.reshape(*page_lse.shape[:3], -1, page_size // unit)
    page_lse = jnp.maximum(jax.nn.logsumexp(page_lse, axis=-1), NOTHING)
  return jnp.where(page_lse > NOTHING / 2, page_lse, NOTHING).reshape(shape)
