"""Inputs for the kernels' conformance suite."""

import jax.numpy as jnp
import numpy as np
import pytest

POISON = float("nan")


@pytest.fixture
def tensors():
  """tensors(case) -> q, k, v of a case of attention, with every slot filled."""

  def make(case):
    random = np.random.default_rng(0)
    batch = len(case.lengths)
    shapes = [(batch, case.heads, case.count, case.head_size)]
    shapes += [(batch, case.kv_heads, case.slots, case.head_size)] * 2
    return tuple(jnp.asarray(random.normal(size=shape), case.dtype) for shape in shapes)

  return make


@pytest.fixture
def poisoned():
  """poisoned(x[B, K, S, D], readable[B, 1 or K, S]) -> x with NaN in the slots not readable."""
  return lambda x, readable: jnp.where(jnp.asarray(readable)[..., None], x, POISON)
