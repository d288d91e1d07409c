"""A unit's programs: how the gradients of micro-batches come to a sum."""

import functools
from concurrent.futures import ThreadPoolExecutor

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from offload.layout import Layout
from offload.programs import Programs, Shape, Where

SHAPE = Shape(2, 24)
_TURNS = 1_000_000  # of a loop: seconds


def _programs(model):
  return Programs(model, Layout.of(jax.eval_shape(model.init_unit, jax.random.key(0))), SHAPE)


def _sums(programs, model):
  """Of three micro-batches: of a unit, of the last one and the head, and of the embedding."""
  unit, resident = (make(jax.random.key(1)) for make in (model.init_unit, model.init_resident))
  head, scale = programs.head_part(resident), np.float32(0.5)
  sums, last, embed = None, (None, None), None
  for m in range(3):
    rng = np.random.default_rng(m)
    tokens, targets = rng.integers(0, 64, (2, SHAPE.sequences, SHAPE.tokens)).astype(np.int32)
    x, dy = (jnp.array(rng.normal(size=programs.boundary.shape), jnp.float32) for _ in range(2))
    where = Where.of(0, 0, 0, m, np.broadcast_to(np.arange(SHAPE.tokens), tokens.shape))
    before = sums, last, embed
    _, sums = programs.backward(unit, x, dy, sums, where)
    _, _, *last = programs.loss_backward(unit, head, x, targets, scale, *last, where)
    embed = programs.embed_backward(resident["embed"], tokens, dy, embed, where)
    jax.block_until_ready((sums, last, embed))
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(before))  # their memory is taken
  return sums, last, embed


def test_sums_are_the_same_added_apart_and_in_place(small_model, monkeypatch):
  """As on a CPU and as elsewhere, but for what two compilations may round otherwise."""
  apart = _sums(_programs(small_model), small_model)
  monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
  in_place = _sums(_programs(small_model), small_model)
  close = functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=2e-6)
  jax.tree.map(close, apart, in_place)


def test_who_waits_for_the_other_results_has_waited_for_the_sums(small_model):
  """A step ends when its gradient of the boundary is there: the next may have taken the sums."""
  programs = _programs(small_model)
  unit, x = small_model.init_unit(jax.random.key(1)), jnp.ones(programs.boundary.shape)
  where = Where.of(0, 0, 0, 0, np.zeros(x.shape[:2], np.int32))
  turn = lambda _, tree: jax.tree.map(lambda leaf: -leaf, tree)
  late = jax.jit(lambda tree: jax.lax.fori_loop(0, _TURNS, turn, tree)).lower(unit).compile()
  with ThreadPoolExecutor(1) as other:  # XLA would begin nothing else of this thread meanwhile
    sums = other.submit(late, unit).result()  # still to come when a backward pass would be over
  dx, sums = programs.backward(unit, x, x, sums, where)
  dx.block_until_ready()
  assert all(leaf.is_ready() for leaf in jax.tree.leaves(sums))


def test_a_sum_given_beside_none_is_refused(small_model):
  """Not left out: whoever begins one of a program's sums begins all."""
  programs = _programs(small_model)
  unit, resident = (
    make(jax.random.key(1)) for make in (small_model.init_unit, small_model.init_resident)
  )
  head, x = programs.head_part(resident), jnp.ones(programs.boundary.shape)
  at = np.zeros(x.shape[:2], np.int32)
  given = (unit, head, x, at, np.float32(1), None, head, Where.of(0, 0, 0, 0, at))
  with pytest.raises(TypeError, match="pytree"):
    programs.loss_backward(*given)
