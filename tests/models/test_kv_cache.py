"""Appending behind ragged lengths, rolling back, and how many slots a text needs."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from models import kv_cache
from models.config import PRESETS


def cache_of(lengths):
  cache = kv_cache.make(PRESETS["bytes-tiny"], len(lengths), slots=16)
  return cache.with_lengths(jnp.array(lengths, jnp.int32))


@pytest.mark.parametrize(("lengths", "rows"), [((3, 0, 9), 2), ((5,), 1), ((5, 6), 1), ((4,), 3)])
def test_append_writes_behind_each_sequence_and_nothing_before(lengths, rows):
  cache = cache_of(lengths)
  ones = tuple(jnp.ones_like(x) for x in cache.keys)
  cache = cache._replace(keys=ones, values=ones)
  k = jax.random.normal(jax.random.key(0), (len(lengths), 2, rows, 16))
  keys, values = jax.jit(lambda c, k, v: c.append(1, k, v))(cache, k, 2 * k)
  for b, length in enumerate(lengths):
    np.testing.assert_array_equal(keys[b, :, :length], 1)
    np.testing.assert_array_equal(keys[b, :, length : length + rows], k[b])
    np.testing.assert_array_equal(values[b, :, length : length + rows], 2 * k[b])


def test_rolling_back_changes_lengths_alone():
  cache = cache_of((8, 8))
  back = cache.with_lengths(jnp.array([8, 2], jnp.int32))
  assert back.lengths.tolist() == [8, 2]
  assert back.keys is cache.keys
  assert back.values is cache.values


def test_slots_leave_room_behind_the_longest_text():
  assert kv_cache.slots_for(tokens=500, spare=12, multiple=512) == 512
  assert kv_cache.slots_for(tokens=501, spare=12, multiple=512) == 1024


def test_a_loop_of_one_row_steps_copies_no_cache():
  """XLA once copied the whole cache at every step here; see `append_rows`."""
  cache = cache_of((3,))
  row = jnp.ones((1, 2, 1, 16))

  def step(i, carry):
    keys, row = carry
    keys = kv_cache.append_rows(keys, row, cache.lengths + i)
    return keys, jnp.einsum("bktd,bksd->bkts", row, keys) @ keys

  loop = jax.jit(lambda keys, row: jax.lax.fori_loop(0, 4, step, (keys, row)), donate_argnums=0)
  text = loop.lower(cache.keys[0], row).compile().as_text()
  assert "f32[1,2,16,16]{3,2,1,0} copy(" not in text
