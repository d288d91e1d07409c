"""One suite for every implementation of attention with mass, on every case that it supports."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.pallas import mosaic_gpu as plgpu

from pallas_kernels import choice
from pallas_kernels.attention_with_mass import api, attention_with_mass, mosaic_gpu, triton, xla
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


def reason_against(case, supports):
  """The sentence with which an implementation refuses a case, or None."""
  batch = len(case.lengths)
  q = jnp.zeros((batch, case.heads, case.count, case.head_size), case.dtype)
  cache = jnp.zeros((batch, case.kv_heads, case.slots, case.head_size), case.dtype)
  integers = jnp.zeros((batch,), jnp.int32)
  rows = tuple(row % case.count for row in case.rows)
  return supports(q, cache, cache, integers, integers, rows=rows, page_size=case.page_size)


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
  tolerance = {"bfloat16": 2e-2, "float16": 2e-3, "float32": 2e-5}[case.dtype]
  wide = lambda tree: [np.asarray(x, np.float64) for x in jax.tree.leaves(tree)]
  pairs = list(zip(wide(got), wide(wanted), strict=True))
  return max(np.max(np.abs(a - b) / (tolerance * (1 + np.abs(b)))) for a, b in pairs)


def check(case, function, tensors, poisoned):
  """The suite's comparison: shapes, dtype and values of the reference, whatever lies outside."""
  q, k, v = tensors(case)
  lengths, starts, filled = of_case(case)
  arguments = q, poisoned(k, filled), poisoned(v, filled), lengths, starts
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
  options = {"rows": case.rows, "page_size": case.page_size, "implementation": implementation}
  reason = reason_against(case, IMPLEMENTATIONS[implementation][1])
  assert reason is not None and reason.endswith(".")
  with pytest.raises(ValueError) as refusal:
    attention_with_mass(*tensors(case), *of_case(case)[:1], **options)
  assert str(refusal.value) == f"attention_with_mass cannot run as {implementation}: {reason}"


_PLAIN = Case("", 4, 2, 2, 64, 64, (9,), (0,), (0,), 16, "bfloat16")


@pytest.mark.parametrize(
  ("implementation", "change", "sentence"),
  [
    ("triton", {"page_size": 5, "slots": 320}, "page size 5 is not a power of two up to 64."),
    ("triton", {"rows": (0, 0)}, "rows (0, 0) repeat one."),
    ("triton", {"head_size": 48}, "head size 48 is none of (32, 64, 128, 256)."),
    ("triton", {"count": 65}, "the rows of a group of query heads are more than 128."),
    ("triton", {"dtype": "int8"}, "queries of int8 over a cache of int8."),
    ("triton", {"slots": 80}, "80 slots are not a multiple of 64."),
    ("mosaic_gpu", {"page_size": 1}, "page size 1 is none of (16, 32, 64)."),
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
    tolerance = {"bfloat16": 1e-2, "float16": 1e-3, "float32": 1e-5}[case.dtype]
    expected = weights @ v[b, shared, seen]
    np.testing.assert_allclose(np.asarray(got.out[b, h, t], np.float64), expected, atol=tolerance)
    for j, row in enumerate(case.rows):
      if row % case.count == t:
        pages = np.zeros(case.slots)
        pages[seen] = weights
        pages = pages.reshape(-1, case.page_size).sum(axis=-1)
        share = np.exp(np.asarray(got.page_lse[b, h, j]) - np.asarray(got.lse[b, h, t]))
        np.testing.assert_allclose(share, pages, atol=1e-5)


MUTATIONS = {
  "nothing": lambda run, q, k, v, *ends, **o: run(q, k, v, *ends, **o),
  "keys and values swapped": lambda run, q, k, v, *ends, **o: run(q, v, k, *ends, **o),
  "a page late": lambda run, q, k, v, *ends, page_size, **o: run(
    q, *(jnp.roll(x, page_size, axis=2) for x in (k, v)), *ends, page_size=page_size, **o
  ),
  "a slot short": lambda run, q, k, v, lengths, starts, **o: run(q, k, v, lengths - 1, starts, **o),
  "heads' groups shifted": lambda run, q, *rest, **o: run(jnp.roll(q, 1, axis=1), *rest, **o),
  "masses a page off": lambda run, *arguments, **o: (
    lambda right: right._replace(page_lse=jnp.roll(right.page_lse, 1, axis=-1))
  )(run(*arguments, **o)),
}


@implementations
@pytest.mark.parametrize("mutation", MUTATIONS)
def test_the_suite_fails_what_is_wrong(mutation, implementation, tensors):
  """With nothing poisoned, so that it is the values that tell."""
  dtype = "bfloat16" if implementation == "mosaic_gpu" else "float32"
  case = Case("", 8, 2, 5, 64, 64, (50, 30), (3, 0), (0, -1), 16, dtype)
  mutant = functools.partial(MUTATIONS[mutation], IMPLEMENTATIONS[implementation][0])
  run = lambda: check(case, mutant, tensors, lambda x, _: x)
  if mutation == "nothing":
    run()
  else:
    with pytest.raises(AssertionError):
      run()


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
def test_what_does_not_fit_is_refused(change, sentence, monkeypatch):
  monkeypatch.setattr(choice, "of_this_machine", lambda: ("xla",))
  q, cache = jnp.zeros((1, 4, 3, 32)), jnp.zeros((1, 2, 64, 32))
  with pytest.raises(ValueError, match=sentence):
    attention_with_mass(q, cache, cache, jnp.array([9], jnp.int32), **change)


@pytest.mark.skipif("mosaic_gpu" not in IMPLEMENTATIONS, reason="JAX 0.10 cannot interpret it")
def test_splits_have_no_more_pages_than_fit_the_shared_memory(tensors, poisoned, monkeypatch):
  case = Case("", 2, 1, 2, 640, 64, (640, 300), (0, 70), (0, -1), 16, "bfloat16")
  monkeypatch.setattr(mosaic_gpu, "MOST_PAGES", 8)  # two blocks
  # A function of its own: what another limit compiled is not taken for it.
  own = lambda *arguments, **options: IMPLEMENTATIONS["mosaic_gpu"][0](*arguments, **options)
  check(case, own, tensors, poisoned)
  made = jax.make_jaxpr(functools.partial(own, rows=(0, 1), page_size=16))(
    *tensors(case), *of_case(case)[:2]
  )
  assert "f32[2,1,5,8,64]" in str(made)  # log-sum-exps of five splits of eight pages


@pytest.mark.parametrize(("heads", "count", "name"), [(16, 1, "triton"), (17, 1, "mosaic_gpu")])
def test_few_packed_rows_go_to_triton(tensors, monkeypatch, heads, count, name):
  case = _PLAIN._replace(heads=heads, kv_heads=1, count=count, page_size=16)
  monkeypatch.setattr(choice, "of_this_machine", lambda: ("mosaic_gpu", "triton", "xla"))
  ran = []
  for own, module in (("triton", triton), ("mosaic_gpu", mosaic_gpu)):
    note = lambda *arguments, own=own, **options: (
      ran.append(own) or reference(*arguments, **options)
    )
    monkeypatch.setitem(api.IMPLEMENTATIONS, own, (note, module.supports))
  attention_with_mass(*tensors(case), *of_case(case)[:1], rows=(0,), page_size=16)
  assert ran == [name]
