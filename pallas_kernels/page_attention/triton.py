"""Page attention in place for NVIDIA GPUs from Ampere on, by Pallas' Triton backend.

A program takes one sequence, one key/value head and a split of its entries: first the selected
pages' slots, then the tail's. Each entry's slot is computed from the page list, and its row of keys
and values, which is contiguous, is loaded from there.
"""

import functools

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu

from pallas_kernels import packing, triton_tile
from pallas_kernels.page_attention.reference import PageAttention


def supports(q, k, v, lengths, pages, tail_starts, *, page_size, tail) -> str | None:
  """None, or the sentence that says why not."""
  del v, lengths, pages, tail_starts, page_size, tail
  return triton_tile.unsupported(q, k)


def _kernel(
  length_ref, tail_ref, pages_ref, q_ref, k_ref, v_ref, out_ref, lse_ref,
  *, count, block, page_size, per_split, selected_blocks
):  # fmt: skip
  length, tail_start = length_ref[...], tail_ref[...]
  q = q_ref[...]
  position = length - count + jax.lax.rem(jnp.arange(q.shape[0]), count)

  def step(i, state):
    entry = i * block + jnp.arange(block)
    place = entry // page_size
    listed = place < pages_ref.shape[0]
    page = plgpu.load(pages_ref.at[place], mask=listed, other=-1)
    in_tail = tail_start + entry - selected_blocks * block
    slots = jnp.where(i < selected_blocks, page * page_size + entry % page_size, in_tail)
    readable = jnp.where(i < selected_blocks, page >= 0, in_tail < length)
    visible = readable[None, :] & (slots[None, :] <= position[:, None])
    logits = triton_tile.masked_logits(q, triton_tile.gather(k_ref, slots, readable), visible)
    return triton_tile.attend(state, logits, triton_tile.gather(v_ref, slots, readable))

  first = pl.program_id(2) * per_split
  end = selected_blocks + pl.cdiv(length - tail_start, block)
  high = jnp.minimum(first + per_split, end)
  state = jax.lax.fori_loop(first, high, step, triton_tile.nothing(*q.shape))
  triton_tile.store_partial(state, out_ref, lse_ref)


def page_attention(
  q, k, v, lengths, pages, tail_starts, *, page_size, tail, interpret=False
) -> PageAttention:
  """See `api.page_attention`; `interpret` runs the kernel on any backend, slowly."""
  batch, _, count, size = q.shape
  kv_heads, slots = k.shape[1:3]
  tile, block = triton_tile.tile_rows(q, k), triton_tile.block_size(k)
  if not pages.shape[2]:  # a kernel's argument has at least one element
    pages = jnp.full((*pages.shape[:2], 1), -1, jnp.int32)
  selected_blocks = pl.cdiv(pages.shape[2] * page_size, block)
  blocks = selected_blocks + pl.cdiv(tail, block)
  per_split = packing.blocks_per_split(batch * kv_heads, blocks, block)
  splits = pl.cdiv(blocks, per_split)
  of_sequence = pl.BlockSpec((None,), lambda b, h, s: (b,))
  one_set = pages.shape[1] == 1
  of_set = pl.BlockSpec((None, None, pages.shape[2]), lambda b, h, s: (b, 0 if one_set else h, 0))
  of_head = lambda *shape: pl.BlockSpec((None, None, *shape), lambda b, h, s: (b, h, 0, 0))
  shapes = (batch, kv_heads, splits, tile, size), (batch, kv_heads, splits, tile)
  out, lse = pl.pallas_call(
    functools.partial(
      _kernel,
      count=count,
      block=block,
      page_size=page_size,
      per_split=per_split,
      selected_blocks=selected_blocks,
    ),
    grid=(batch, kv_heads, splits),
    in_specs=[of_sequence] * 2 + [of_set, of_head(tile, size)] + [of_head(slots, size)] * 2,
    out_specs=[
      pl.BlockSpec((None, None, None, tile, size), lambda b, h, s: (b, h, s, 0, 0)),
      pl.BlockSpec((None, None, None, tile), lambda b, h, s: (b, h, s, 0)),
    ],
    out_shape=[jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes],
    compiler_params=triton_tile.PARAMETERS,
    interpret=interpret,
    name="page_attention",
  )(lengths, tail_starts, pages, packing.pack(q, kv_heads, tile), k, v)
  return PageAttention(*packing.merge(out, lse, q))
