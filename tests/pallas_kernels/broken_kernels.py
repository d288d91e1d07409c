"""Kernels that must not compile: too much shared memory, spilled registers, a wrong GPU."""

import jax
import jax.numpy as jnp
from jax.experimental.pallas import triton as plgpu

from pallas_kernels import triton_tile
from pallas_kernels.attention_with_mass import mosaic_gpu, triton


def with_tile(block, **parameters):
  """The Triton kernel with blocks and launch parameters that do not fit."""

  def run(*arguments):
    kept = triton_tile.block_size, triton_tile.PARAMETERS
    triton_tile.block_size = lambda _: block
    triton_tile.PARAMETERS = plgpu.CompilerParams(**parameters)
    try:
      return triton.attention(*arguments, rows=(), page_size=64)
    finally:
      triton_tile.block_size, triton_tile.PARAMETERS = kept

  return run


def cases(gpu):
  del gpu
  integers = jax.ShapeDtypeStruct((4,), jnp.int32)
  q = jax.ShapeDtypeStruct((4, 32, 4, 128), jnp.bfloat16)
  cache = jax.ShapeDtypeStruct((4, 8, 8192, 128), jnp.bfloat16)
  arguments = q, cache, cache, integers, integers
  yield "shared memory", "", with_tile(256, num_warps=4, num_stages=4), arguments
  yield "registers", "", with_tile(128, num_warps=1, num_stages=2), arguments
  wgmma = lambda *arguments: mosaic_gpu.attention(*arguments, rows=(), page_size=64)
  yield "wgmma before Hopper", "", wgmma, arguments
