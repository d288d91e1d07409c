"""Appending rows to a KV cache."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels.cache_append import append
from pallas_kernels.cache_append.api import IMPLEMENTATIONS
from pallas_kernels.cache_append.shapes import CONFORMANCE


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("case", CONFORMANCE, ids=lambda case: case.name)
def test_rows_stand_at_their_slots_and_nothing_else_changes(case, implementation):
  random = np.random.default_rng(0)
  cache, new = (
    jnp.asarray(
      random.normal(size=(len(case.positions), case.kv_heads, slots, case.head_size)), case.dtype
    )
    for slots in (case.slots, case.count)
  )
  expected = np.array(cache)
  for sequence, position in enumerate(case.positions):
    for row in range(case.count):
      if position + row < case.slots:
        expected[sequence, :, position + row] = new[sequence, :, row]
  positions = jnp.array(case.positions, jnp.int32)
  got = append(cache, new, positions, implementation=implementation)
  np.testing.assert_array_equal(got, expected)


def test_a_row_before_the_cache_is_dropped():
  cache, new = jnp.zeros((1, 1, 8, 2)), jnp.ones((1, 1, 3, 2))
  got = append(cache, new, jnp.array([-2], jnp.int32), implementation="xla")
  np.testing.assert_array_equal(got[0, 0, :, 0], [1, 0, 0, 0, 0, 0, 0, 0])


@pytest.mark.parametrize("in_a_loop", [False, True])
def test_no_cache_sized_temporary(in_a_loop):
  cache = jax.ShapeDtypeStruct((2, 8, 4096, 64), jnp.float32)
  new = jax.ShapeDtypeStruct((2, 8, 5, 64), jnp.float32)

  def rounds(cache, new, positions):
    if not in_a_loop:
      return append(cache, new, positions, implementation="xla")
    step = lambda i, cache: append(cache, new, positions + i, implementation="xla")
    return jax.lax.fori_loop(0, 3, step, cache)

  lowered = jax.jit(rounds, donate_argnums=0).lower(
    cache, new, jax.ShapeDtypeStruct((2,), jnp.int32)
  )
  memory = lowered.compile().memory_analysis()
  assert memory.temp_size_in_bytes < cache.size * 4 / 50
  assert memory.alias_size_in_bytes >= cache.size * 4
