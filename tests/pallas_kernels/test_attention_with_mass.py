"""One suite for every implementation of attention with mass, on every case that it supports."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.pallas import mosaic_gpu as plgpu

from pallas_kernels import choice
from pallas_kernels.attention_with_mass import attention_with_mass, mosaic_gpu, triton, xla
from pallas_kernels.attention_with_mass.reference import reference
from pallas_kernels.attention_with_mass.shapes import CONFORMANCE, Case

NATIVE = choice.of_this_machine()  # elsewhere kernels are interpreted
IMPLEMENTATIONS = {
  "xla": (xla.attention, xla.supports),
  "triton": (
    functools.partial(triton.attention, interpret="triton" not in NATIVE),
    triton.supports,
  ),
}
if "mosaic_gpu" in NATIVE:
  IMPLEMENTATIONS["mosaic_gpu"] = mosaic_gpu.attention, mosaic_gpu.supports
elif hasattr(plgpu, "InterpretGPUParams"):  # JAX 0.10 cannot interpret these kernels
  interpreted = functools.partial(mosaic_gpu.attention, interpret=plgpu.InterpretGPUParams())
  IMPLEMENTATIONS["mosaic_gpu"] = interpreted, mosaic_gpu.supports
cases = pytest.mark.parametrize("case", CONFORMANCE, ids=lambda case: case.name)
implementations = pytest.mark.parametrize("implementation", IMPLEMENTATIONS)


def of_case(case):
  """Lengths and starts [B] of a case, and which of its slots [B, 1, S] are filled."""
  lengths, starts = (np.array(x, np.int32) for x in (case.lengths, case.starts))
  slot = np.arange(case.slots)
  filled = (slot >= starts[:, None]) & (slot < lengths[:, None])
  return jnp.asarray(lengths), jnp.asarray(starts), filled[:, None]


@functools.cache
def compiled(function, rows, page_size):
  return jax.jit(functools.partial(function, rows=rows, page_size=page_size))


def results(case, function, *arguments):
  rows = tuple(row % case.count for row in case.rows)
  return compiled(function, rows, case.page_size)(*arguments)


def differ(case, got, wanted):
  """The largest error in units of the case's tolerance."""
  tolerance = 2e-2 if case.dtype == "bfloat16" else 2e-5
  wide = lambda tree: [np.asarray(x, np.float64) for x in jax.tree.leaves(tree)]
  pairs = list(zip(wide(got), wide(wanted), strict=True))
  return max(np.max(np.abs(a - b) / (tolerance * (1 + np.abs(b)))) for a, b in pairs)


@implementations
@cases
def test_conforms(case, implementation, tensors, poisoned):
  function, supports = IMPLEMENTATIONS[implementation]
  if implementation == "mosaic_gpu":
    case = case._replace(dtype="bfloat16")
  q, k, v = tensors(case)
  lengths, starts, filled = of_case(case)
  arguments = q, poisoned(k, filled), poisoned(v, filled), lengths, starts
  reason = supports(*arguments, rows=case.rows, page_size=case.page_size)
  if reason is not None:
    assert reason.endswith(".")
    pytest.skip(reason)
  got, wanted = results(case, function, *arguments), results(case, reference, *arguments)
  assert got.out.dtype == q.dtype
  assert jax.tree.map(jnp.shape, got) == jax.tree.map(jnp.shape, wanted)
  assert differ(case, got, wanted) < 1


@cases
def test_the_reference_is_attention_row_by_row(case, tensors):
  """In float64, a row at a time, over the keys that it sees."""
  q, k, v = tensors(case)
  lengths, starts, _ = of_case(case)
  got = results(case, reference, q, k, v, lengths, starts)
  q, k, v = (np.asarray(x, np.float64) for x in (q, k, v))
  for b, h, t in np.ndindex(q.shape[:3]):
    shared = h // (case.heads // case.kv_heads)
    end = case.lengths[b] - case.count + t + 1
    seen = slice(case.starts[b], max(end, case.starts[b]))
    logits = k[b, shared, seen] @ q[b, h, t] / np.sqrt(case.head_size)
    if not logits.size:
      assert not np.any(got.out[b, h, t])
      assert got.lse[b, h, t] == np.float32(-1e30)
      continue
    np.testing.assert_allclose(got.lse[b, h, t], np.log(np.exp(logits).sum()), rtol=1e-5, atol=1e-5)
    weights = np.exp(logits) / np.exp(logits).sum()
    tolerance = 1e-2 if case.dtype == "bfloat16" else 1e-5
    expected = weights @ v[b, shared, seen]
    np.testing.assert_allclose(np.asarray(got.out[b, h, t], np.float64), expected, atol=tolerance)
    for j, row in enumerate(case.rows):
      if row % case.count == t:
        pages = np.zeros(case.slots)
        pages[seen] = weights
        pages = pages.reshape(-1, case.page_size).sum(axis=-1)
        share = np.exp(np.asarray(got.page_lse[b, h, j]) - np.asarray(got.lse[b, h, t]))
        np.testing.assert_allclose(share, pages, atol=1e-5)


@implementations
def test_mutations_are_seen(implementation, tensors):
  """The suite's tolerance tells a kernel that swaps K and V, or is a page or a slot off."""
  dtype = "bfloat16" if implementation == "mosaic_gpu" else "float32"
  case = Case("", 8, 2, 5, 256, 64, (50, 30), (3, 0), (0, -1), 16, dtype)
  function, _ = IMPLEMENTATIONS[implementation]
  q, k, v = tensors(case)
  lengths, starts, _ = of_case(case)
  wanted = results(case, reference, q, k, v, lengths, starts)
  run = functools.partial(results, case, function)
  roll = lambda x: jnp.roll(x, case.page_size, axis=2)
  mutants = {
    "keys and values swapped": run(q, v, k, lengths, starts),
    "a page late": run(q, roll(k), roll(v), lengths, starts),
    "a slot short": run(q, k, v, lengths - 1, starts),
    "heads' groups shifted": run(jnp.roll(q, 1, axis=1), k, v, lengths, starts),
  }
  for name, mutant in mutants.items():
    assert differ(case, mutant, wanted) > 1, name
  right = run(q, k, v, lengths, starts)
  shifted = right._replace(page_lse=jnp.roll(right.page_lse, 1, axis=-1))
  assert differ(case, shifted, wanted) > 1, "masses a page off"


def test_the_xla_form_goes_head_by_head_where_logits_are_large(tensors, monkeypatch):
  case = next(case for case in CONFORMANCE if case.name == "a prefill chunk")
  q, k, v = tensors(case)
  lengths, starts, _ = of_case(case)
  run = lambda: jax.jit(functools.partial(xla.attention, rows=case.rows, page_size=case.page_size))
  whole = run()(q, k, v, lengths, starts)
  monkeypatch.setattr(xla, "LOGIT_BYTES", 1)
  by_head = run()(q, k, v, lengths, starts)
  assert differ(case, by_head, whole) < 1


def test_the_xla_form_holds_one_head_of_logits(tensors):
  shape = jax.ShapeDtypeStruct
  q, cache = shape((1, 8, 512, 64), jnp.float32), shape((1, 8, 16_384, 64), jnp.float32)
  lengths = shape((1,), jnp.int32)
  run = functools.partial(attention_with_mass, rows=(-1,), page_size=16, implementation="xla")
  memory = jax.jit(run).lower(q, cache, cache, lengths).compile().memory_analysis()
  a_head = 512 * 16_384 * 4
  assert memory.temp_size_in_bytes < 5 * a_head


@pytest.mark.parametrize(
  ("change", "sentence"),
  [
    ({"rows": (3,)}, "not all among the 3 rows"),
    ({"page_size": 24}, "no whole number of pages of 24"),
    ({"implementation": "cudnn"}, "no implementation 'cudnn'; use one of"),
    ({"implementation": "triton"}, "needs an NVIDIA GPU"),
  ],
)
def test_what_does_not_fit_is_refused(change, sentence):
  q, cache = jnp.zeros((1, 4, 3, 32)), jnp.zeros((1, 2, 64, 32))
  with pytest.raises(ValueError, match=sentence):
    attention_with_mass(q, cache, cache, jnp.array([9], jnp.int32), **change)
