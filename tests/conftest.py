"""A strict world for every test: CPU, annotations checked, no implicit rank promotion."""

# ruff: noqa: E402  (the order of imports is the point)

import itertools
import os

os.environ.setdefault("JAX_PLATFORMS", "cpu")  # before anything imports JAX; gpu_check says cuda

from jaxtyping import install_import_hook

# Before anything imports them: from here on calls are checked against their annotations.
install_import_hook(["models", "pallas_kernels", "offload", "experiments"], "beartype.beartype")

import hypothesis
import jax
import numpy as np
import pytest

jax.config.update("jax_numpy_rank_promotion", "raise")

hypothesis.settings.register_profile(
  "repeatable",
  deadline=None,  # the first example compiles
  derandomize=True,
  max_examples=25,
  database=None,
)
hypothesis.settings.load_profile("repeatable")

# How far a result may be from its reference, per dtype of the computation: rtol and atol.
_TOLERANCES = {
  "float64": {"rtol": 1e-12, "atol": 1e-12},
  "float32": {"rtol": 2e-5, "atol": 2e-5},
  "float16": {"rtol": 2e-3, "atol": 2e-3},
  "bfloat16": {"rtol": 2e-2, "atol": 2e-2},
}

_ended, _TESTS_PER_CLEARING = itertools.count(1), 50


def pytest_addoption(parser):
  parser.addoption("--whole_grid", action="store_true", help="Grids of settings, whole.")


@pytest.fixture(autouse=True)
def _programs_are_let_go(request):
  """Each takes some of the memory maps, of which a process may have 65,530: a whole grid's are
  more, and one too many is a crash. To compile anew after each test is most of a test's time."""
  yield
  if request.config.getoption("whole_grid") and next(_ended) % _TESTS_PER_CLEARING == 0:
    jax.clear_caches()


@pytest.fixture
def assert_close():
  """assert_close(actual, expected, dtype=float32, scale=1): equal within the dtype's tolerance.

  `scale` widens it for values that are sums of many terms; both sides are compared in float64.
  """

  def check(actual, expected, dtype="float32", scale=1.0):
    within = {k: v * scale for k, v in _TOLERANCES[np.dtype(dtype).name].items()}
    wide = lambda tree: [np.asarray(leaf, np.float64) for leaf in jax.tree.leaves(tree)]
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    for got, wanted in zip(wide(actual), wide(expected), strict=True):
      np.testing.assert_allclose(got, wanted, rtol=within["rtol"], atol=within["atol"])

  return check
