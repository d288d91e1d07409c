"""Page attention in place for Hopper, by Pallas' Mosaic GPU backend.

A program takes one sequence, one key/value head and a split of its blocks: first those of the
selected pages, several pages a block, then those of the tail. See `mosaic_tile`. Blocks of padding
alone are passed over, and padding beside pages is filled with a page that is selected. Copies begin
at multiples of 8 slots, so up to 7 slots before the tail are fetched with it, and masked.
"""

import functools
import types

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from pallas_kernels import mosaic_tile, packing
from pallas_kernels.mosaic_tile import BLOCK, ROWS, Block
from pallas_kernels.page_attention.reference import PageAttention

PAGE_SIZES = (8, 16, 32, 64)
STEP = 8  # slots; TMA copies begin at a multiple of it, as the tiles in shared memory do


def supports(q, k, v, lengths, pages, tail_starts, *, page_size, tail) -> str | None:
  """None, or the sentence that says why not."""
  del v, lengths, tail_starts, tail
  if page_size not in PAGE_SIZES:
    return f"page size {page_size} is none of {PAGE_SIZES}."
  return mosaic_tile.unsupported(q, k)


def _kernel(
  length_ref, tail_ref, padding_ref, pages_ref, q_ref, k_ref, v_ref, out_ref, lse_ref, *refs,
  count, page_size, per_split, names
):  # fmt: skip
  s = types.SimpleNamespace(**dict(zip(names, refs, strict=True)))
  b, h, split = (jax.lax.axis_index(name) for name in ("b", "h", "split"))
  _, sets, places = pages_ref.shape
  slots, copies = k_ref.shape[2], BLOCK // page_size
  own_set = h if sets > 1 else 0
  length, tail_start, padding = length_ref[b], tail_ref[b], padding_ref[b, own_set]
  selected_blocks = -(-places // copies)
  plgpu.copy_gmem_to_smem(q_ref.at[b, h], s.q, s.q_here)
  position = length - count + jax.lax.rem(mosaic_tile.columns(axis=0), jnp.int32(count))

  def tail_block(i):  # against the cache's end a block begins earlier, with slots of no interest
    wanted = tail_start // STEP + (i - selected_blocks) * (BLOCK // STEP)
    return wanted, jnp.minimum(wanted, (slots - BLOCK) // STEP)

  def fetch(i, place):
    for j in range(copies):
      entry = jnp.clip(i * copies + j, jnp.minimum(padding, places - 1), places - 1)
      page = jnp.maximum(pages_ref[b, own_set, entry], 0)
      steps = page_size // STEP
      start = jnp.where(i < selected_blocks, page * steps, tail_block(i)[1] + j * steps)
      at, to = (b, h, pl.ds(start * STEP, page_size)), (place, pl.ds(j * page_size, page_size))
      plgpu.copy_gmem_to_smem(k_ref.at[at], s.k.at[to], s.k_here.at[place])
      plgpu.copy_gmem_to_smem(v_ref.at[at], s.v.at[to], s.v_here.at[place])

  def describe(i):  # selected entries count up to 0, where every row sees them
    wanted, first = tail_block(i)
    entries = Block(
      (i - selected_blocks) * BLOCK,
      (padding - selected_blocks * copies) * page_size,
      (places - selected_blocks * copies) * page_size,
    )
    in_tail = Block(first * STEP, jnp.maximum(wanted * STEP, tail_start), length)
    return Block(
      *(jnp.where(i < selected_blocks, *pair) for pair in zip(entries, in_tail, strict=True))
    )

  first = split * per_split
  low = jnp.maximum(first, padding // copies)
  end = selected_blocks + (length - tail_start // STEP * STEP + BLOCK - 1) // BLOCK
  high = jnp.minimum(first + per_split, end)
  out, lse = mosaic_tile.walk(s, position, low, high, fetch, describe, lambda *_: None)
  mosaic_tile.store(s, out, lse, out_ref.at[b, h, split], lse_ref.at[b, h, split])


def page_attention(
  q, k, v, lengths, pages, tail_starts, *, page_size, tail, interpret=None
) -> PageAttention:
  """See `api.page_attention`; `interpret` takes `InterpretGPUParams` (JAX 0.11)."""
  batch, _, count, size = q.shape
  kv_heads = k.shape[1]
  if not pages.shape[2]:  # a kernel's argument has at least one element
    pages = jnp.full((*pages.shape[:2], 1), -1, jnp.int32)
  copies = BLOCK // page_size
  blocks = pl.cdiv(pages.shape[2], copies) + pl.cdiv(tail + STEP - 1, BLOCK)
  per_split = packing.blocks_per_split(batch * kv_heads, blocks, BLOCK)
  splits = pl.cdiv(blocks, per_split)
  kept = mosaic_tile.kept_rows(q, k)
  scratch = mosaic_tile.scratch(q, copies)
  shapes = (batch, kv_heads, splits, kept, size), (batch, kv_heads, splits, kept)
  out, lse = plgpu.kernel(
    functools.partial(
      _kernel, count=count, page_size=page_size, per_split=per_split, names=tuple(scratch)
    ),
    out_type=tuple(jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes),
    scratch_types=tuple(scratch.values()),
    grid=(batch, kv_heads, splits),
    grid_names=("b", "h", "split"),
    interpret=interpret,
    compiler_params=mosaic_tile.PARAMETERS,
  )(
    lengths,
    tail_starts,
    (pages < 0).sum(axis=-1, dtype=jnp.int32),
    pages,
    packing.pack(q, kv_heads, ROWS),
    k,
    v,
  )
  return PageAttention(*packing.merge(out, lse, q))
