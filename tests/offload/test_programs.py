"""A unit's programs: how the gradients of micro-batches come to a sum."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from offload.layout import Layout
from offload.programs import Programs, Shape, Where

SHAPE = Shape(2, 24)


def _programs(model):
  return Programs(model, Layout.of(jax.eval_shape(model.init_unit, jax.random.key(0))), SHAPE)


def _sums(programs, model):
  """Of three micro-batches: of a unit, of the last one and the head, and of the embedding."""
  unit, resident = (make(jax.random.key(1)) for make in (model.init_unit, model.init_resident))
  head, scale = programs.head_part(resident), np.float32(0.5)
  sums, last, embed = (None,), (None, None), (None,)
  for m in range(3):
    rng = np.random.default_rng(m)
    tokens, targets = rng.integers(0, 64, (2, SHAPE.sequences, SHAPE.tokens)).astype(np.int32)
    x, dy = (jnp.array(rng.normal(size=programs.boundary.shape), jnp.float32) for _ in range(2))
    where = Where.of(0, 0, 0, m, np.broadcast_to(np.arange(SHAPE.tokens), tokens.shape))
    _, *sums = programs.backward(unit, x, dy, *sums, where)
    _, _, *last = programs.loss_backward(unit, head, x, targets, scale, *last, where)
    embed = programs.embed_backward(resident["embed"], tokens, dy, *embed, where)
  return sums, last, embed


def test_sums_are_the_same_added_apart_and_in_place(small_model, monkeypatch):
  """On a CPU and elsewhere, but for the order in which an embedding's gradients are added."""
  apart = _sums(_programs(small_model), small_model)
  monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
  in_place = _sums(_programs(small_model), small_model)
  *dense, embeddings = zip(apart, in_place, strict=True)
  for one, other in dense:
    jax.tree.map(np.testing.assert_array_equal, tuple(one), tuple(other))
  jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=2e-6), *embeddings)
