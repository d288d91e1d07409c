"""One suite for every implementation of page attention, on every case that it supports."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.pallas import mosaic_gpu as plgpu

from pallas_kernels import choice
from pallas_kernels.page_attention import mosaic_gpu, page_attention, triton, xla
from pallas_kernels.page_attention.reference import reference
from pallas_kernels.page_attention.shapes import CONFORMANCE

NATIVE = choice.of_this_machine()  # elsewhere kernels are interpreted
IMPLEMENTATIONS = {
  "xla": (xla.page_attention, xla.supports),
  "triton": (
    functools.partial(triton.page_attention, interpret="triton" not in NATIVE),
    triton.supports,
  ),
}
if "mosaic_gpu" in NATIVE:
  IMPLEMENTATIONS["mosaic_gpu"] = mosaic_gpu.page_attention, mosaic_gpu.supports
elif hasattr(plgpu, "InterpretGPUParams"):  # JAX 0.10 cannot interpret these kernels
  interpreted = functools.partial(mosaic_gpu.page_attention, interpret=plgpu.InterpretGPUParams())
  IMPLEMENTATIONS["mosaic_gpu"] = interpreted, mosaic_gpu.supports
cases = pytest.mark.parametrize("case", CONFORMANCE, ids=lambda case: case.name)
implementations = pytest.mark.parametrize("implementation", IMPLEMENTATIONS)


def of_case(case):
  """Lengths, pages and tail starts of a case, and which slots [B, sets, S] may be read."""
  random = np.random.default_rng(1)
  pages = np.full((len(case.lengths), case.sets, case.places), -1, np.int32)
  slot = np.arange(case.slots)
  readable = np.zeros((len(case.lengths), case.sets, case.slots), bool)
  for b, h in np.ndindex(pages.shape[:2]):
    eligible = case.tail_starts[b] // case.page_size
    chosen = np.sort(random.permutation(eligible)[: case.selected[b]])
    pages[b, h, case.places - len(chosen) :] = chosen
    readable[b, h] = np.isin(slot // case.page_size, chosen)
    readable[b, h] |= (slot >= case.tail_starts[b]) & (slot < case.lengths[b])
  as_int = lambda x: jnp.asarray(np.array(x, np.int32))
  return as_int(case.lengths), as_int(pages), as_int(case.tail_starts), readable


@functools.cache
def compiled(function, page_size, tail):
  return jax.jit(functools.partial(function, page_size=page_size, tail=tail))


def results(case, function, *arguments):
  return compiled(function, case.page_size, case.tail)(*arguments)


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
  lengths, pages, tail_starts, readable = of_case(case)
  readable = np.broadcast_to(readable, (len(case.lengths), case.kv_heads, case.slots))
  arguments = q, poisoned(k, readable), poisoned(v, readable), lengths, pages, tail_starts
  reason = supports(*arguments, page_size=case.page_size, tail=case.tail)
  if reason is not None:
    assert reason.endswith(".")
    pytest.skip(reason)
  got, wanted = results(case, function, *arguments), results(case, reference, *arguments)
  assert got.out.dtype == q.dtype
  assert jax.tree.map(jnp.shape, got) == jax.tree.map(jnp.shape, wanted)
  assert differ(case, got, wanted) < 1


@cases
def test_the_reference_is_attention_row_by_row(case, tensors):
  """In float64, a row at a time, over the slots that it may read."""
  q, k, v = tensors(case)
  lengths, pages, tail_starts, readable = of_case(case)
  got = results(case, reference, q, k, v, lengths, pages, tail_starts)
  q, k, v = (np.asarray(x, np.float64) for x in (q, k, v))
  for b, h, t in np.ndindex(q.shape[:3]):
    shared = h // (case.heads // case.kv_heads)
    position = case.lengths[b] - case.count + t
    seen = np.flatnonzero(readable[b, shared % case.sets] & (np.arange(case.slots) <= position))
    logits = k[b, shared, seen] @ q[b, h, t] / np.sqrt(case.head_size)
    total = np.exp(logits).sum()
    np.testing.assert_allclose(got.lse[b, h, t], np.log(total), rtol=1e-5, atol=1e-5)
    tolerance = 1e-2 if case.dtype == "bfloat16" else 1e-5
    expected = np.exp(logits) / total @ v[b, shared, seen]
    np.testing.assert_allclose(np.asarray(got.out[b, h, t], np.float64), expected, atol=tolerance)


@implementations
def test_mutations_are_seen(implementation, tensors):
  """The suite's tolerance tells a kernel that swaps K and V, or reads other pages."""
  case = next(case for case in CONFORMANCE if case.name == "pages of 64, a set a head")
  function, _ = IMPLEMENTATIONS[implementation]
  case = case._replace(dtype="bfloat16" if implementation == "mosaic_gpu" else "float32")
  q, k, v = tensors(case)
  lengths, pages, tail_starts, _ = of_case(case)
  wanted = results(case, reference, q, k, v, lengths, pages, tail_starts)
  run = functools.partial(results, case, function)
  mutants = {
    "keys and values swapped": run(q, v, k, lengths, pages, tail_starts),
    "a page late": run(q, k, v, lengths, jnp.where(pages < 0, pages, pages + 1), tail_starts),
    "one page short": run(q, k, v, lengths, pages.at[:, :, -1].set(-1), tail_starts),
    "sets of other heads": run(q, k, v, lengths, pages[:, ::-1], tail_starts),
    "a tail one slot short": run(q, k, v, lengths, pages, tail_starts + 1),
  }
  for name, mutant in mutants.items():
    assert differ(case, mutant, wanted) > 1, name


@pytest.mark.parametrize(
  ("change", "sentence"),
  [
    ({"page_size": 24}, "no whole number of pages of 24"),
    ({"tail": 2}, "a tail of 2 slots does not hold 3 rows"),
    ({"implementation": "triton"}, "needs an NVIDIA GPU"),
  ],
)
def test_what_does_not_fit_is_refused(change, sentence):
  q, cache = jnp.zeros((1, 4, 3, 32)), jnp.zeros((1, 2, 64, 32))
  lengths, pages = jnp.array([9], jnp.int32), jnp.zeros((1, 1, 2), jnp.int32)
  with pytest.raises(ValueError, match=sentence):
    page_attention(
      q, cache, cache, lengths, pages, lengths - 3, **{"page_size": 2, "tail": 4} | change
    )
