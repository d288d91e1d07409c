"""Both transports move the same bytes, into memory that is not the source's."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from offload.buffers import aligned
from offload.transport import TRANSPORTS


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


def test_down_fills_the_views(transport, views):
  arrays = jax.tree.map(lambda view: jnp.array(view) * 2, views)
  transport.down(arrays, views)
  jax.tree.map(np.testing.assert_array_equal, arrays, views)


def test_a_second_buffer_of_the_same_shape(transport, views):
  transport.up(views)
  other = jax.tree.map(lambda view: np.copy(view) + 1, views)
  jax.tree.map(np.testing.assert_array_equal, transport.up(other), other)
