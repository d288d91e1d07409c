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
from pallas_kernels.page_attention.shapes import CONFORMANCE, Case

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


def reason_against(case, supports):
  """The sentence with which an implementation refuses a case, or None."""
  batch = len(case.lengths)
  q = jnp.zeros((batch, case.heads, case.count, case.head_size), case.dtype)
  cache = jnp.zeros((batch, case.kv_heads, case.slots, case.head_size), case.dtype)
  integers = jnp.zeros((batch,), jnp.int32)
  pages = jnp.zeros((batch, case.sets, case.places), jnp.int32)
  options = {"page_size": case.page_size, "tail": case.tail}
  return supports(q, cache, cache, integers, pages, integers, **options)


def pairs(supported):
  """Cases with the implementations that support, or refuse, them; Mosaic's are of 16 bits."""
  wide = lambda case, name: name == "mosaic_gpu" and case.dtype == "float32"
  of = lambda case, name: case._replace(dtype="bfloat16") if wide(case, name) else case
  found = [
    pytest.param(of(case, name), name, id=f"{name}-{case.name}")
    for name, (_, supports) in IMPLEMENTATIONS.items()
    for case in CONFORMANCE
    if (reason_against(of(case, name), supports) is None) == supported
  ]
  return pytest.mark.parametrize(("case", "implementation"), found)


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
  tolerance = {"bfloat16": 2e-2, "float16": 2e-3, "float32": 2e-5}[case.dtype]
  wide = lambda tree: [np.asarray(x, np.float64) for x in jax.tree.leaves(tree)]
  pairs = list(zip(wide(got), wide(wanted), strict=True))
  return max(np.max(np.abs(a - b) / (tolerance * (1 + np.abs(b)))) for a, b in pairs)


def check(case, function, tensors, poisoned):
  """The suite's comparison: shapes, dtype and values of the reference, whatever is not selected."""
  q, k, v = tensors(case)
  lengths, pages, tail_starts, readable = of_case(case)
  readable = np.broadcast_to(readable, (len(case.lengths), case.kv_heads, case.slots))
  arguments = q, poisoned(k, readable), poisoned(v, readable), lengths, pages, tail_starts
  got, wanted = results(case, function, *arguments), results(case, reference, *arguments)
  assert got.out.dtype == q.dtype
  assert jax.tree.map(jnp.shape, got) == jax.tree.map(jnp.shape, wanted)
  assert differ(case, got, wanted) < 1


@pairs(supported=True)
def test_conforms(case, implementation, tensors, poisoned):
  check(case, IMPLEMENTATIONS[implementation][0], tensors, poisoned)


@pairs(supported=False)
def test_other_cases_are_refused_with_a_sentence(case, implementation, tensors, monkeypatch):
  monkeypatch.setattr(choice, "of_this_machine", lambda: ("mosaic_gpu", "triton", "xla"))
  reason = reason_against(case, IMPLEMENTATIONS[implementation][1])
  assert reason is not None and reason.endswith(".")
  options = {"page_size": case.page_size, "tail": case.tail, "implementation": implementation}
  with pytest.raises(ValueError) as refusal:
    page_attention(*tensors(case), *of_case(case)[:3], **options)
  assert str(refusal.value) == f"page_attention cannot run as {implementation}: {reason}"


_PLAIN = Case("", 4, 2, 1, 2, 64, 64, (40,), (32,), 16, 16, 1, (1,), "bfloat16")


@pytest.mark.parametrize(
  ("implementation", "change", "sentence"),
  [
    ("triton", {"head_size": 48}, "head size 48 is none of (32, 64, 128, 256)."),
    ("triton", {"count": 65}, "the rows of a group of query heads are more than 128."),
    ("triton", {"dtype": "int8"}, "queries of int8 over a cache of int8."),
    ("triton", {"slots": 80}, "80 slots are not a multiple of 64."),
    ("mosaic_gpu", {"page_size": 1}, "page size 1 is none of (8, 16, 32, 64)."),
    (
      "mosaic_gpu",
      {"dtype": "float32"},
      "queries of float32 over a cache of float32; both must be of one 16-bit type.",
    ),
    (
      "mosaic_gpu",
      {"head_size": 256},
      "head size 256 is neither 64 nor 128; one warpgroup has no registers for more.",
    ),
    ("mosaic_gpu", {"count": 33}, "the rows of a group of query heads are more than 64."),
    ("mosaic_gpu", {"slots": 80}, "80 slots are not a multiple of 64."),
  ],
)
def test_every_refusal_is_its_sentence(implementation, change, sentence):
  supports = {"triton": triton.supports, "mosaic_gpu": mosaic_gpu.supports}[implementation]
  assert reason_against(_PLAIN, supports) is None
  assert reason_against(_PLAIN._replace(**change), supports) == sentence


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
    tolerance = {"bfloat16": 1e-2, "float16": 1e-3, "float32": 1e-5}[case.dtype]
    expected = np.exp(logits) / total @ v[b, shared, seen]
    np.testing.assert_allclose(np.asarray(got.out[b, h, t], np.float64), expected, atol=tolerance)


def _with_pages(change):
  return lambda run, q, k, v, n, pages, t, **o: run(q, k, v, n, change(pages), t, **o)


MUTATIONS = {
  "nothing": _with_pages(lambda pages: pages),
  "keys and values swapped": lambda run, q, k, v, *rest, **o: run(q, v, k, *rest, **o),
  "a page late": _with_pages(lambda pages: jnp.where(pages < 0, pages, pages + 1)),
  "one page short": _with_pages(lambda pages: pages.at[:, :, -1].set(-1)),
  "sets of other heads": _with_pages(lambda pages: pages[:, ::-1]),
  "a tail one slot short": lambda run, *rest, **o: run(*rest[:-1], rest[-1] + 1, **o),
}


@implementations
@pytest.mark.parametrize("mutation", MUTATIONS)
def test_the_suite_fails_what_is_wrong(mutation, implementation, tensors):
  """With nothing poisoned, so that it is the values that tell."""
  case = next(case for case in CONFORMANCE if case.name == "pages of 64, a set a head")
  case = case._replace(dtype="bfloat16" if implementation == "mosaic_gpu" else "float32")
  mutant = functools.partial(MUTATIONS[mutation], IMPLEMENTATIONS[implementation][0])
  run = lambda: check(case, mutant, tensors, lambda x, _: x)
  if mutation == "nothing":
    run()
  else:
    with pytest.raises(AssertionError):
      run()


@pytest.mark.parametrize(
  ("change", "sentence"),
  [
    ({"page_size": 24}, "no whole number of pages of 24"),
    ({"tail": 2}, "a tail of 2 slots does not hold 3 rows"),
    ({"implementation": "triton"}, "needs an NVIDIA GPU"),
  ],
)
def test_what_does_not_fit_is_refused(change, sentence, monkeypatch):
  monkeypatch.setattr(choice, "of_this_machine", lambda: ("xla",))
  q, cache = jnp.zeros((1, 4, 3, 32)), jnp.zeros((1, 2, 64, 32))
  lengths, pages = jnp.array([9], jnp.int32), jnp.zeros((1, 1, 2), jnp.int32)
  with pytest.raises(ValueError, match=sentence):
    page_attention(
      q, cache, cache, lengths, pages, lengths - 3, **{"page_size": 2, "tail": 4} | change
    )
