"""Attention with mass for Hopper, by Pallas' Mosaic GPU backend.

A program takes one sequence, one key/value head and one split of the cache; see `mosaic_tile`. The
log-sum-exps of all 64 packed rows are kept in shared memory and written at the split's end, which
for pages of 16 is 3% of the bytes read at a head size of 128; for single tokens it would be half.
"""

import functools
import types

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from pallas_kernels import mosaic_tile, packing
from pallas_kernels.attention_with_mass.reference import AttentionWithMass
from pallas_kernels.masking import NOTHING
from pallas_kernels.mosaic_tile import BLOCK, ROWS, Block

PAGE_SIZES = (16, 32, 64)
MOST_PAGES = 384  # of a split: 96 KiB of log-sum-exps, what the tiles leave of the shared memory


def supports(q, k, v, lengths, starts, *, rows, page_size) -> str | None:
  """None, or the sentence that says why not."""
  del v, lengths, starts
  if rows and page_size not in PAGE_SIZES:
    return f"page size {page_size} is none of {PAGE_SIZES}."
  return mosaic_tile.unsupported(q, k)


def _kernel(
  length_ref, start_ref, q_ref, k_ref, v_ref, out_ref, lse_ref, *refs, count, per_split, unit, names
):
  page_lse_ref, refs = (refs[0], refs[1:]) if unit else (None, refs)
  s = types.SimpleNamespace(**dict(zip(names, refs, strict=True)))
  b, h, split = (jax.lax.axis_index(name) for name in ("b", "h", "split"))
  length, start = length_ref[b], start_ref[b]
  plgpu.copy_gmem_to_smem(q_ref.at[b, h], s.q, s.q_here)
  position = length - count + jax.lax.rem(mosaic_tile.columns(axis=0), jnp.int32(count))
  first = split * per_split
  low = jnp.maximum(first, start // BLOCK)
  high = jnp.minimum(first + per_split, (length + BLOCK - 1) // BLOCK)

  def fetch(i, place):
    at = b, h, pl.ds(i * BLOCK, BLOCK)
    plgpu.copy_gmem_to_smem(k_ref.at[at], s.k.at[place], s.k_here.at[place])
    plgpu.copy_gmem_to_smem(v_ref.at[at], s.v.at[place], s.v_here.at[place])

  def by_product(i, weights, relative_to):
    if not unit:
      return
    page = mosaic_tile.columns() // unit
    for j in range(BLOCK // unit):
      total = jnp.where(page == j, weights, 0.0).sum(axis=1)
      lse = relative_to + jnp.log(jnp.maximum(total, 1e-37))
      s.page_lse[(i - first) * (BLOCK // unit) + j] = jnp.where(total > 0, lse, NOTHING)

  describe = lambda i: Block(i * BLOCK, start, length)
  out, lse = mosaic_tile.walk(s, position, low, high, fetch, describe, by_product)
  mosaic_tile.store(s, out, lse, out_ref.at[b, h, split], lse_ref.at[b, h, split])
  if page_lse_ref is not None:
    plgpu.copy_smem_to_gmem(s.page_lse, page_lse_ref.at[b, h, split])
    plgpu.wait_smem_to_gmem(0)


def attention(q, k, v, lengths, starts, *, rows, page_size, interpret=None) -> AttentionWithMass:
  """See `api.attention_with_mass`; `interpret` takes `InterpretGPUParams` (JAX 0.11)."""
  batch, heads, count, size = q.shape
  kv_heads, slots = k.shape[1:3]
  group, blocks = heads // kv_heads, slots // BLOCK
  per_split = packing.blocks_per_split(batch * kv_heads, blocks, BLOCK)
  unit = page_size if rows else 0
  if rows:
    per_split = min(per_split, MOST_PAGES // (BLOCK // unit))
  splits = pl.cdiv(blocks, per_split)
  scratch = mosaic_tile.scratch(q, copies=1)
  kept = mosaic_tile.kept_rows(q, k)
  shapes = [(batch, kv_heads, splits, kept, size), (batch, kv_heads, splits, kept)]
  if rows:
    units = per_split * (BLOCK // unit)
    shapes.append((batch, kv_heads, splits, units, ROWS))
    scratch["page_lse"] = plgpu.SMEM((units, ROWS), jnp.float32)
  out, lse, *page_lse = plgpu.kernel(
    functools.partial(_kernel, count=count, per_split=per_split, unit=unit, names=tuple(scratch)),
    out_type=tuple(jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes),
    scratch_types=tuple(scratch.values()),
    grid=(batch, kv_heads, splits),
    grid_names=("b", "h", "split"),
    interpret=interpret,
    compiler_params=mosaic_tile.PARAMETERS,
  )(lengths, starts, packing.pack(q, kv_heads, ROWS), k, v)
  if page_lse:
    found = page_lse[0].reshape(batch, kv_heads, -1, ROWS)[:, :, : slots // unit, : group * count]
    found = found.reshape(batch, kv_heads, -1, group, count)[..., list(rows)]
    found = jnp.moveaxis(found, 2, 4).reshape(batch, kv_heads, group * len(rows), -1)
    shape = batch, heads, len(rows), slots // page_size
    bounds = {"unit": unit, "page_size": page_size}
    page_lse = [packing.merge_page_lse(found, shape, lengths, starts, **bounds)]
  return AttentionWithMass(*packing.merge(out, lse, q), *(page_lse or [None]))
