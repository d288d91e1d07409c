"""From attention masses to pages."""

import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels.selection import page_mass, select_pages
from pallas_kernels.selection.api import IMPLEMENTATIONS, MASSES
from pallas_kernels.selection.shapes import CONFORMANCE


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("coarse", [False, True], ids=["distinct", "with ties"])
@pytest.mark.parametrize("case", CONFORMANCE, ids=lambda case: case.name)
def test_the_pages_of_most_mass_in_ascending_order(case, coarse, implementation):
  random = np.random.default_rng(0)
  mass = random.uniform(size=(len(case.limits), case.sets, case.pages)).astype(np.float32)
  if coarse:
    mass = np.round(mass, 1)
  pages, counts = select_pages(
    jnp.asarray(mass),
    jnp.array(case.limits, jnp.int32),
    jnp.array(case.counts, jnp.int32),
    capacity=case.capacity,
    implementation=implementation,
  )
  assert pages.shape == (len(case.limits), case.sets, case.capacity)
  for sequence, limit in enumerate(case.limits):
    wanted = min(case.counts[sequence], limit, case.capacity, case.pages)
    assert counts[sequence] == wanted
    for held, found in zip(mass[sequence], np.asarray(pages[sequence]), strict=True):
      best = sorted(range(limit), key=lambda page: (-held[page], page))[:wanted]
      assert found.tolist() == [-1] * (case.capacity - wanted) + sorted(best)


@pytest.mark.parametrize("implementation", MASSES)
def test_mass_is_the_mean_share_over_rows_and_heads_of_a_set(implementation):
  random = np.random.default_rng(0)
  logits = random.normal(size=(2, 6, 2, 5)).astype(np.float32)
  lse = np.log(np.exp(logits).sum(-1))
  arguments = jnp.asarray(logits), jnp.asarray(lse)
  share = np.exp(logits - lse[..., None])
  for sets in (1, 3):
    got = page_mass(*arguments, sets=sets, implementation=implementation)
    expected = [
      share[:, i * (6 // sets) : (i + 1) * (6 // sets)].mean(axis=(1, 2)) for i in range(sets)
    ]
    np.testing.assert_allclose(got, np.stack(expected, axis=1), rtol=1e-5)
    np.testing.assert_allclose(got.sum(-1), 1, rtol=1e-5)


def test_sets_that_do_not_divide_the_heads_are_refused():
  with pytest.raises(ValueError, match="6 query heads do not divide into 4 sets"):
    page_mass(jnp.zeros((1, 6, 1, 8)), jnp.zeros((1, 6, 1)), sets=4)
