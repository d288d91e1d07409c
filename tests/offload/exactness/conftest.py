"""The reference that training under a schedule is held to."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from offload.programs import Where
from offload.verdict import add_squares


@pytest.fixture(scope="session")
def reference(small):
  """Plain loops over the same compiled unit functions: every boundary and gradient in memory.

  Gradients are summed in `order(unit, micro_batches)`; the optimizer sees whole vectors. What
  several tests hold theirs to is trained once.
  """

  def run(
    name: str,
    order,
    micro_batches: int = 3,
    dtype: str = "float32",
    rule: str = "adamw",
    **settings: Any,
  ):
    trained = once if not settings else of
    return trained(name, order, micro_batches, dtype, rule, **settings)

  of = lambda *how, **settings: _Reference(small, *how, **settings).train()
  once = functools.cache(of)
  return run


class _Reference:
  def __init__(
    self,
    small,
    name,
    order,
    micro_batches,
    dtype,
    rule,
    clip_norm=0.0,
    skipped=(),
    loss_scales=None,
  ):
    """`skipped` iterations step nothing; `loss_scales` are those of each iteration."""
    self.small, self.order, self.m = small, order, micro_batches
    self.model, self.p = small.compiled(name, dtype)
    self.layout = layout = small.layout_of(self.model)
    self.clip_norm, self.skipped = clip_norm, skipped
    self.loss_scales, self.norms = loss_scales or [1.0] * small.iterations, []
    key = jax.random.key(0)
    init_unit, units = jax.jit(self.model.init_unit), range(self.model.units)
    self.units = [init_unit(jax.random.fold_in(key, u)) for u in units]
    self.resident = jax.jit(self.model.init_resident)(jax.random.fold_in(key, len(units)))
    # Initial values are made in the model's dtype; masters are their float32 copies.
    vectors = [self._vector(unit) for unit in self.units]
    self.masters = [*vectors, jax.tree.map(lambda x: x.astype(jnp.float32), self.resident)]
    both = small.optimizer(rule)
    self.decays = jnp.arange(layout.elements) < layout.decayed
    self.states = [(both.decayed.init(v), both.plain.init(v)) for v in vectors]
    self.step_unit = _step_of(both.decayed, both.plain)
    matrices = jax.tree.map(lambda x: x.ndim >= 2, self.resident)
    resident_rule = optax.chain(
      optax.masked(both.decayed, matrices),
      optax.masked(both.plain, jax.tree.map(lambda x: not x, matrices)),
    )
    self.resident_state = resident_rule.init(self.masters[-1])
    self.step_resident = _step_of(resident_rule)

  def _vector(self, unit):
    out = np.zeros(self.layout.elements, np.float32)
    jax.tree.map(lambda view, x: np.copyto(view, x), self.layout.views(out), unit)
    return jnp.array(out)

  def train(self):
    losses = [self.iteration(k) for k in range(self.small.iterations)]
    leaves = [np.asarray(x) for x in jax.tree.leaves((self.units, self.resident))]
    vectors = []
    for states, master in zip(self.states, self.masters, strict=False):
      pairs = zip(*map(jax.tree.leaves, states), strict=True)  # of both rules
      vectors += [np.where(self.decays, *pair) for pair in pairs if pair[0].ndim]
      vectors += [np.asarray(master)] if self.model.dtype != jnp.float32 else []
    return self.small.Trained(losses, leaves, vectors, norms=self.norms)

  def iteration(self, k: int) -> float:
    p, last = self.p, self.model.units - 1
    data = [self.small.batches(k, m) for m in range(self.m)]
    weight = float(sum((targets >= 0).sum() for _, targets, _ in data))
    at = lambda u, m: Where.of(0, k, u, m, data[m].positions)
    embed, head = self.resident["embed"], p.head_part(self.resident)
    inputs = [[p.embed(embed, tokens, at(0, m)) for m, (tokens, _, _) in enumerate(data)]]
    for u in range(last):
      inputs.append([p.forward(self.units[u], x, at(u, m)) for m, x in enumerate(inputs[u])])
    dys: list[Any] = [None] * self.m
    losses, gradients = [0.0] * self.m, []
    head_sum, embed_sum = None, None
    for u in reversed(range(last + 1)):
      total, unit = None, self.units[u]
      for m in self.order(u, self.m):
        if u == last:
          loss, dys[m], total, head_sum = p.loss_backward(
            *(unit, head, inputs[u][m], data[m][1], np.float32(self.loss_scales[k] / weight)),
            *(total, head_sum, at(u, m)),
          )
          losses[m] = float(loss)
        else:
          dys[m], total = p.backward(unit, inputs[u][m], dys[m], total, at(u, m))
        if u == 0:
          embed_sum = p.embed_backward(embed, data[m][0], dys[m], embed_sum, at(u, m))
      gradients.insert(0, total)
    total = {**head_sum, "embed": embed_sum}
    if "embed" in head_sum:
      total["embed"] = jax.tree.map(jnp.add, embed_sum, head_sum["embed"])
    gradients, total = self._clipped(gradients, total, np.float32(self.loss_scales[k]))
    if k not in self.skipped:
      self._update(gradients, total)
    return sum(losses) / weight

  def _clipped(self, gradients, total, loss_scale):
    """Squares are summed from the last unit to the first, the resident parameters' last."""
    squares = np.float32(0)
    for tree in (*reversed(gradients), total):
      squares = add_squares(squares, tree)
    norm = np.sqrt(np.asarray(squares)) / loss_scale
    self.norms.append(float(norm))
    factor = 1 / loss_scale
    if self.clip_norm and norm >= self.clip_norm:
      factor *= np.float32(self.clip_norm) / norm
    clip = lambda g: np.asarray(g) * factor
    return jax.tree.map(clip, gradients), jax.tree.map(clip, total)

  def _update(self, gradients, total) -> None:
    for u, gradient in enumerate(gradients):
      self.masters[u], self.states[u] = self._step(self._vector(gradient), u)
      self.units[u] = jax.tree.map(
        lambda x: jnp.array(x).astype(self.model.dtype),
        self.layout.views(np.asarray(self.masters[u])),
      )
    (self.masters[-1],), (self.resident_state,) = self.step_resident(
      self.masters[-1], (self.resident_state,), total
    )
    self.resident = jax.tree.map(lambda x: x.astype(self.model.dtype), self.masters[-1])

  def _step(self, gradient, u):
    """With decay and without, over the whole vector; each element takes its own."""
    (decayed, plain), after = self.step_unit(self.masters[u], self.states[u], gradient)
    return jnp.where(self.decays, decayed, plain), after


def _step_of(*rules):
  """One program that takes a step by each rule, from the same masters."""

  @jax.jit
  def step(masters, states, gradients):
    both = zip(rules, states, strict=True)
    updates, after = zip(*(r.update(gradients, s, masters) for r, s in both), strict=True)
    return [optax.apply_updates(masters, update) for update in updates], after

  return step
