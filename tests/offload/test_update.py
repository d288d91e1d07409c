"""An optax transformation applied to slices: where the vector is cut changes no bit."""

import itertools

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from offload import optimizers
from offload.update import Optimizer, Updater, block_of

N, DECAYED, BLOCK = 7000, 5056, 4096  # two blocks of 3,072 that decay, and one of 2,048
LENGTHS = (DECAYED, N - DECAYED)


def vectors(updater, seed=0):
  rng = np.random.default_rng(seed)
  parameters = rng.standard_normal(N).astype(np.float32)
  states = np.zeros((len(updater.names), N), np.float32)
  updater.initial_states(parameters, states)
  updater.start(0)
  return parameters, states, [rng.standard_normal(N).astype(np.float32) for _ in range(3)]


@pytest.mark.parametrize("name", optimizers.OPTIMIZERS)
def test_equals_optax_on_whole_vectors(name, assert_close):
  optimizer = optimizers.make(name, optimizers.warmup_cosine(0.1, 1, 5), 0.1)
  updater = Updater(optimizer, np.float32, LENGTHS, BLOCK)
  parameters, states, gradients = vectors(updater)
  expected, halves = jnp.array(parameters), (slice(0, DECAYED), slice(DECAYED, N))
  rules = (optimizer.decayed, optimizer.plain)
  after = [rule.init(expected[half]) for rule, half in zip(rules, halves, strict=True)]
  for k, gradient in enumerate(gradients):
    updater.apply(k, parameters, states, gradient, DECAYED)
    pieces = []
    for i, (rule, half) in enumerate(zip(rules, halves, strict=True)):
      update, after[i] = rule.update(jnp.array(gradient[half]), after[i], expected[half])
      pieces.append(optax.apply_updates(expected[half], update))
    expected = jnp.concatenate(pieces)
    assert_close(parameters, expected)


@hypothesis.given(st.lists(st.integers(0, N), max_size=3))
def test_cuts_change_no_bit(cuts):
  updater = Updater(optimizers.make("adamw", 0.1, 0.1), np.float32, LENGTHS, BLOCK)
  whole, whole_states, gradients = vectors(updater)
  for k, gradient in enumerate(gradients):
    updater.apply(k, whole, whole_states, gradient, DECAYED)
  cut, cut_states, _ = vectors(updater)
  edges = sorted({0, N, *cuts})
  for k, gradient in enumerate(gradients):
    for a, b in itertools.pairwise(edges):
      updater.apply(k, cut[a:b], cut_states[:, a:b], gradient[a:b], DECAYED - a)
  np.testing.assert_array_equal(whole, cut)
  np.testing.assert_array_equal(whole_states, cut_states)


def test_masters_keep_what_bfloat16_loses():
  """Steps below half a bfloat16 unit add up: only masters of more bits can do that."""
  updater = Updater(optimizers.make("momentum", 1e-4, 0.0), jnp.bfloat16, LENGTHS, BLOCK)
  assert updater.names[-1] == "master"
  masters, states = np.ones(N, np.float32), np.zeros((len(updater.names), N), np.float32)
  updater.initial_states(masters, states)
  updater.start(0)
  parameters = masters.astype(jnp.bfloat16)
  for k in range(20):
    updater.apply(k, parameters, states, np.ones(N, np.float32), DECAYED)
  assert states[-1].max() < 1 - 0.004
  np.testing.assert_array_equal(parameters, states[-1].astype(jnp.bfloat16))


def test_states_of_one_name_are_kept_apart():
  twice = optax.chain(optax.trace(0.9), optax.trace(0.5), optax.scale(-0.1))
  assert Updater(Optimizer(twice, twice), np.float32, LENGTHS, BLOCK).names == [
    "trace_0",
    "trace_1",
  ]


def normalised(rate):
  def update(gradients, state, parameters=None):
    norm = optax.tree.norm(gradients)
    return jax.tree.map(lambda g: -rate * g / norm, gradients), state

  return optax.GradientTransformation(lambda parameters: optax.EmptyState(), update)


CLIPPED = optax.chain(optax.clip_by_global_norm(100.0), optax.sgd(optax.linear_schedule(0, 1, 2)))


@pytest.mark.parametrize("rule", [optax.lamb(0.1), optax.adafactor(0.1), normalised(0.1), CLIPPED])
def test_what_is_not_elementwise_is_refused(rule):
  with pytest.raises(ValueError, match="only elementwise optimizers"):
    Updater(Optimizer(rule, rule), np.float32, LENGTHS, BLOCK)


@hypothesis.given(st.integers(0, 2**24), st.integers(1, 300))
def test_blocks_are_few_and_even(length, steps):
  most = steps * 1024
  size = block_of(length, most)
  assert 0 < size <= most and size % 1024 == 0
  fewest = -(-length // most)
  assert (fewest - 1) * size < length <= fewest * size or length == 0
  assert fewest * size - length < 1024 * max(fewest, 1)


def test_a_whole_vector_is_updated_in_even_blocks():
  updater, sizes = Updater(optimizers.make("adamw", 0.1, 0.1), np.float32, LENGTHS, BLOCK), []

  def scaled(gradients):
    sizes.append(len(gradients))
    return gradients

  parameters, states, (gradients, *_) = vectors(updater)
  updater.apply(0, parameters, states, gradients, DECAYED, scaled)
  assert sizes == [3072, 3072, 2048]
