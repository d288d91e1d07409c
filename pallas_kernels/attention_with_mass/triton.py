"""Attention with mass for NVIDIA GPUs from Ampere on, by Pallas' Triton backend.

A program takes one sequence, one key/value head and one split of the cache, and walks the split's
blocks between the sequence's start and its length. The log-sum-exp of a page is one reduction of
the logits that are in registers anyway; only the rows asked for are stored.
"""

import functools

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu

from pallas_kernels import packing, triton_tile
from pallas_kernels.attention_with_mass.reference import AttentionWithMass


def supports(q, k, v, lengths, starts, *, rows, page_size) -> str | None:
  """None, or the sentence that says why not."""
  del v, lengths, starts
  if rows and page_size not in (1, 2, 4, 8, 16, 32, 64):
    return f"page size {page_size} is not a power of two up to 64."
  if len(set(rows)) < len(rows):
    return f"rows {rows} repeat one."
  return triton_tile.unsupported(q, k)


def _kernel(
  length_ref, start_ref, q_ref, k_ref, v_ref, *out_refs, count, block, per_split, rows, unit
):  # fmt: skip
  out_ref, lse_ref, *page_lse_refs = out_refs
  length, start = length_ref[...], start_ref[...]
  q = q_ref[...]
  row = jax.lax.rem(jnp.arange(q.shape[0]), count)
  position = length - count + row

  def step(i, state):
    slots = i * block + jnp.arange(block)
    filled = (slots >= start) & (slots < length)
    visible = filled[None, :] & (slots[None, :] <= position[:, None])
    logits = triton_tile.masked_logits(q, triton_tile.load(k_ref, i * block, filled), visible)
    if page_lse_refs:
      _store_page_lse(logits, row, i, page_lse_refs[0], count=count, rows=rows, unit=unit)
    return triton_tile.attend(state, logits, triton_tile.load(v_ref, i * block, filled))

  first = pl.program_id(2) * per_split
  low = jnp.maximum(first, start // block)
  high = jnp.minimum(first + per_split, pl.cdiv(length, block))
  state = jax.lax.fori_loop(low, high, step, triton_tile.nothing(*q.shape))
  triton_tile.store_partial(state, out_ref, lse_ref)


def _store_page_lse(logits, row, block_index, ref, *, count, rows, unit):
  """Writes the log-sum-exp of each unit of slots for the tile's rows that are among `rows`."""
  tile, block = logits.shape
  units = block // unit
  if unit > 1:
    pages = logits.reshape(tile, units, unit)
    largest = pages.max(axis=2)
    logits = largest + jnp.log(jnp.exp(pages - largest[:, :, None]).sum(axis=2))
  head = jnp.arange(tile) // count
  place, wanted = jnp.zeros_like(row), jnp.zeros_like(row)
  for j, chosen in enumerate(rows):
    place, wanted = place + j * (row == chosen), wanted + (row == chosen)
  at_row = jnp.where(wanted > 0, head * len(rows) + place, ref.shape[0])
  at_row = jnp.broadcast_to(at_row[:, None], logits.shape)
  at_unit = jnp.broadcast_to((block_index * units + jnp.arange(units))[None, :], logits.shape)
  plgpu.store(ref.at[at_row, at_unit], logits, mask=at_row < ref.shape[0])


def attention(q, k, v, lengths, starts, *, rows, page_size, interpret=False) -> AttentionWithMass:
  """See `api.attention_with_mass`; `interpret` runs the kernel on any backend, slowly."""
  batch, heads, count, size = q.shape
  kv_heads, slots = k.shape[1:3]
  tile, block = triton_tile.tile_rows(q, k), triton_tile.block_size(k)
  per_split = packing.blocks_per_split(batch * kv_heads, slots // block, block)
  splits = pl.cdiv(slots // block, per_split)
  unit = min(page_size, block)
  of_sequence = pl.BlockSpec((None,), lambda b, h, s: (b,))
  of_head = lambda *shape: pl.BlockSpec((None, None, *shape), lambda b, h, s: (b, h, 0, 0))
  shapes = [(batch, kv_heads, splits, tile, size), (batch, kv_heads, splits, tile)]
  out_specs = [
    pl.BlockSpec((None, None, None, tile, size), lambda b, h, s: (b, h, s, 0, 0)),
    pl.BlockSpec((None, None, None, tile), lambda b, h, s: (b, h, s, 0)),
  ]
  if rows:
    shapes.append((batch, kv_heads, heads // kv_heads * len(rows), slots // unit))
    out_specs.append(of_head(*shapes[-1][2:]))
  out, lse, *page_lse = pl.pallas_call(
    functools.partial(_kernel, count=count, block=block, per_split=per_split, rows=rows, unit=unit),
    grid=(batch, kv_heads, splits),
    in_specs=[of_sequence] * 2 + [of_head(tile, size)] + [of_head(slots, size)] * 2,
    out_specs=out_specs,
    out_shape=[jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes],
    compiler_params=triton_tile.PARAMETERS,
    interpret=interpret,
    name="attention_with_mass",
  )(lengths, starts, packing.pack(q, kv_heads, tile), k, v)
  if page_lse:
    shape = batch, heads, len(rows), slots // page_size
    bounds = {"unit": unit, "page_size": page_size}
    page_lse = [packing.merge_page_lse(page_lse[0], shape, lengths, starts, **bounds)]
  return AttentionWithMass(*packing.merge(out, lse, q), *(page_lse or [None]))
