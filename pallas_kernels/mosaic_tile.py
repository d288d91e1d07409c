"""The inner loop of the Mosaic GPU kernels (Hopper): packed rows walk blocks of 64 slots.

One warpgroup holds 64 packed rows (what its matrix unit takes), and a ring of blocks comes in by
TMA while the block before is attended to. A block is told by three numbers (`Block`), and an
operation by how it fetches blocks and what it does with their logits.

The interpreter of JAX 0.11 takes the weights from shared memory only, so they go there.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from pallas_kernels.masking import NOTHING

ROWS = 64
BLOCK = 64
DEPTH = 2  # blocks in flight
PARAMETERS = plgpu.CompilerParams(approx_math=True)
WGMMA = plgpu.Layout.WGMMA

_WHOLE = () if jax.__version_info__ >= (0, 11) else ((),)  # `plgpu.load` lost its index in 0.11


class Block(NamedTuple):
  """Column c of a block is slot `first + c`; those of [low, high) are readable."""

  first: Any
  low: Any
  high: Any


def unsupported(q: jax.Array, k: jax.Array) -> str | None:
  """Why no Mosaic kernel takes these queries and this cache, or None."""
  if k.dtype not in (jnp.bfloat16, jnp.float16) or q.dtype != k.dtype:
    return f"queries of {q.dtype} over a cache of {k.dtype}; both must be of one 16-bit type."
  if q.shape[3] not in (64, 128):
    return f"head size {q.shape[3]} is neither 64 nor 128; one warpgroup has no registers for more."
  if q.shape[1] // k.shape[1] * q.shape[2] > ROWS:
    return f"the rows of a group of query heads are more than {ROWS}."
  if k.shape[2] % BLOCK:
    return f"{k.shape[2]} slots are not a multiple of {BLOCK}."
  return None


def scratch(q: jax.Array, copies: int) -> dict[str, Any]:
  """Shared memory of a program; a block's keys, and its values, come in so many copies."""
  size = q.shape[3]
  tiles = (
    plgpu.TilingTransform((8, 64)),  # pyright: ignore[reportAbstractUsage]
    plgpu.SwizzleTransform(128),  # pyright: ignore[reportAbstractUsage]
  )
  tile = lambda *shape: plgpu.SMEM(shape, q.dtype, transforms=tiles)
  arrivals = plgpu.Barrier(num_arrivals=copies, num_barriers=DEPTH)
  return {
    "q": tile(ROWS, size),
    "k": tile(DEPTH, BLOCK, size),
    "v": tile(DEPTH, BLOCK, size),
    "weights": tile(ROWS, BLOCK),
    "out": plgpu.SMEM((ROWS, size), jnp.float32),
    "lse": plgpu.SMEM((ROWS,), jnp.float32),
    "q_here": plgpu.Barrier(),
    "k_here": arrivals,
    "v_here": arrivals,
  }


def kept_rows(q: jax.Array, k: jax.Array) -> int:
  """Rows of the tile that are written: the packed ones, up to a multiple of 16."""
  return -(-q.shape[1] // k.shape[1] * q.shape[2] // 16) * 16


def columns(axis: int = 1):
  """i32[ROWS, BLOCK], counting along an axis."""
  return plgpu.broadcasted_iota(jnp.int32, (ROWS, BLOCK), axis, layout=WGMMA)


def wide(x, shape):
  """A number a row, over all columns."""
  return jax.lax.broadcast_in_dim(x, shape, [0])


def product(a, b, width: int):
  """f32[ROWS, width], a @ b of two tiles in shared memory."""

  def run(sums):
    plgpu.wgmma(sums, a, b)
    return sums[...]

  return pl.run_scoped(run, plgpu.ACC((ROWS, width), jnp.float32))


def walk(
  s: Any,
  position,
  low,
  high,
  fetch: Callable[[Any, Any], None],
  describe: Callable[[Any], Block],
  by_product: Callable[[Any, Any, Any], None],
):
  """Attends to blocks [low, high); returns the weighted mean of values and the log-sum-exp.

  Args:
    s: the program's `scratch`, with the queries on their way.
    position: i32[ROWS, BLOCK], the slot at which each row stands.
    fetch: starts the copies of a block into a place of the ring.
    describe: tells a block's slots.
    by_product: gets the block, its weights, and the logit that they are relative to.
  """
  size = s.q.shape[1]
  for i in range(DEPTH):
    pl.when(low + i < high)(lambda i=i: fetch(low + i, i))
  plgpu.barrier_wait(s.q_here)

  def step(i, state):
    out, largest, total = state
    place = jax.lax.rem(i - low, jnp.int32(DEPTH))
    block = describe(i)
    plgpu.barrier_wait(s.k_here.at[place])
    logits = product(s.q, s.k.at[place].T, BLOCK) * size**-0.5
    slot = block.first + columns()
    visible = (slot >= block.low) & (slot < block.high) & (slot <= position)
    logits = jnp.where(visible, logits, NOTHING)
    own = logits.max(axis=1)
    weights = jnp.exp(logits - wide(own, logits.shape))
    by_product(i, weights, own)
    new = jnp.maximum(largest, own)
    old_share, own_share = jnp.exp(largest - new), jnp.exp(own - new)
    s.weights[...] = (weights * wide(own_share, weights.shape)).astype(s.weights.dtype)
    plgpu.barrier_wait(s.v_here.at[place])
    _clear_unreadable(s.v.at[place], block)
    plgpu.commit_smem()
    out = out * wide(old_share, out.shape) + product(s.weights, s.v.at[place], size)
    pl.when(i + DEPTH < high)(lambda: fetch(i + DEPTH, place))
    return out, new, total * old_share + weights.sum(axis=1) * own_share

  row = lambda x: plgpu.layout_cast(jnp.full((ROWS,), x, jnp.float32), WGMMA.reduce(1))
  zeros = plgpu.layout_cast(jnp.zeros((ROWS, size), jnp.float32), WGMMA)
  state = zeros, row(NOTHING), row(0.0)
  out, largest, total = jax.lax.fori_loop(low, high, step, state)
  safe = jnp.where(total > 0, total, 1.0)
  return out / wide(safe, out.shape), largest + jnp.log(safe)


def _clear_unreadable(v, block: Block) -> None:
  """Zeros in place of values that may be NaN: a weight of 0 does not remove those."""

  @pl.when((block.first < block.low) | (block.first + BLOCK > block.high))
  def _():
    for j in range(0, v.shape[1], BLOCK):
      part = v.at[:, pl.ds(j, BLOCK)]
      slot = block.first + columns(axis=0)
      held = plgpu.load(part, *_WHOLE, layout=WGMMA, optimized=False)
      readable = (slot >= block.low) & (slot < block.high)
      part[...] = jnp.where(readable, held, jnp.zeros_like(held))


def store(s: Any, out, lse, out_ref, lse_ref) -> None:
  """Writes a split's results to device memory: f32[rows, D] and f32[rows] of the tile."""
  s.out[...], s.lse[...] = out, lse
  plgpu.commit_smem()
  rows = pl.ds(0, out_ref.shape[0])
  plgpu.copy_smem_to_gmem(s.out.at[rows], out_ref)
  plgpu.copy_smem_to_gmem(s.lse.at[rows], lse_ref)
  plgpu.wait_smem_to_gmem(0)
