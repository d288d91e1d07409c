"""Both transports move the same bytes, into memory that is not the source's."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from offload.buffers import Arena, aligned
from offload.transport import TRANSPORTS, Room


@pytest.fixture(params=TRANSPORTS)
def transport(request):
  return TRANSPORTS[request.param]()


@pytest.fixture
def views():
  vector = aligned((40_000,), np.float32)
  vector[:] = np.arange(40_000)
  return {"matrix": vector[:30_000].reshape(100, 300), "bias": vector[30_016:30_020]}


def test_up_makes_copies(transport, views):
  expected = jax.tree.map(np.copy, views)
  arrays = transport.up(views)
  jax.tree.map(lambda view: view.fill(-1), views)  # the buffer is refilled at once
  jax.tree.map(np.testing.assert_array_equal, arrays, expected)


@pytest.mark.parametrize("dtype", [np.float32, jnp.bfloat16, np.float16])
def test_a_room_holds_one_tree_after_another(transport, views, dtype):
  """In memory of its own, and what is compiled reads what is there now."""
  room, total = Room(Arena()), jax.jit(lambda tree: jax.tree.map(jnp.sum, tree))
  some = jax.tree.map(lambda view: (view % 7).astype(dtype), views)
  for first in (0, 1):
    some["bias"][:] = first
    expected = jax.tree.map(np.copy, some)
    arrays = transport.up(some, room)
    some["bias"][:] = -1  # the buffer is refilled at once
    jax.tree.map(np.testing.assert_array_equal, total(arrays), total(expected))
    jax.tree.map(np.testing.assert_array_equal, jax.tree.map(jnp.array, arrays), expected)


def test_rooms_do_not_share_memory(transport, views):
  arena = Arena()
  first, second = Room(arena), Room(arena)
  arrays = transport.up(views, first)
  other = jax.tree.map(lambda view: view + 1, views)
  transport.up(other, second)
  jax.tree.map(np.testing.assert_array_equal, jax.tree.map(jnp.array, arrays), views)


def test_down_fills_the_views(transport, views):
  arrays = jax.tree.map(lambda view: jnp.array(view) * 2, views)
  transport.down(arrays, views)
  jax.tree.map(np.testing.assert_array_equal, arrays, views)


def test_a_second_buffer_of_the_same_shape(transport, views):
  transport.up(views)
  other = jax.tree.map(lambda view: np.copy(view) + 1, views)
  jax.tree.map(np.testing.assert_array_equal, transport.up(other), other)
