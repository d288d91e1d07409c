"""Gathering pages into a compact scratch."""

import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels.gather_pages import gather_pages
from pallas_kernels.gather_pages.api import IMPLEMENTATIONS
from pallas_kernels.gather_pages.shapes import CONFORMANCE


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("case", CONFORMANCE, ids=lambda case: case.name)
def test_the_scratch_holds_the_pages_in_order(case, implementation):
  random = np.random.default_rng(0)
  cache = random.normal(size=(2, case.kv_heads, case.slots, case.head_size))
  cache = jnp.asarray(cache, case.dtype)
  pages = random.integers(-1, case.slots // case.page_size, (2, case.sets, case.selected))
  got = gather_pages(
    cache,
    jnp.asarray(pages, jnp.int32),
    page_size=case.page_size,
    implementation=implementation,
  )
  assert got.dtype == cache.dtype
  assert got.shape == (2, case.kv_heads, case.selected * case.page_size, case.head_size)
  for sequence, head, place in np.ndindex(2, case.kv_heads, case.selected):
    page = pages[sequence, head if case.sets > 1 else 0, place]
    slots = slice(place * case.page_size, (place + 1) * case.page_size)
    if page >= 0:
      held = cache[sequence, head, page * case.page_size : (page + 1) * case.page_size]
      np.testing.assert_array_equal(got[sequence, head, slots], held)


def test_shapes_that_do_not_fit_are_refused():
  cache = jnp.zeros((1, 4, 64, 8))
  with pytest.raises(ValueError, match="2 sets of pages"):
    gather_pages(cache, jnp.zeros((1, 2, 3), jnp.int32), page_size=16)
  with pytest.raises(ValueError, match="no whole number of pages of 24"):
    gather_pages(cache, jnp.zeros((1, 1, 3), jnp.int32), page_size=24)
