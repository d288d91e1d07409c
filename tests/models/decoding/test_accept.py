"""Acceptance keeps tokens (greedy) and distributions (sampling): exactly, and by chi-square."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from models.config import ModelConfig
from models.decoding import accept
from models.decoding.loop import Method
from models.decoding.sampling import Greedy, Sampling, draw
from models.decoding.selectors import Budget, make_selector
from models.transformer import Transformer

V, SAMPLES = 6, 30_000


def test_greedy_accepts_the_matching_prefix():
  logits = jax.nn.one_hot(jnp.array([[1, 2, 3], [4, 5, 0]]), V)
  drafts = jnp.array([[1, 0], [4, 5]], jnp.int32)
  yielded = accept.accept_greedy(drafts, logits)
  assert yielded.accepted.tolist() == [1, 2]
  assert yielded.tokens.tolist() == [[1, 2, 3], [4, 5, 0]]


def p_value(first, second, p):
  """Of the first two tokens against p(x1) p(x2 | x1); p[0] holds the first token's distribution."""
  counts = np.zeros((V, V))
  np.add.at(counts, (first, second), 1)
  return chi_square(counts.ravel(), (p[V][:, None] * p[:V]).ravel())


def chi_square(counts, probabilities):
  """The p-value; in float64, so that both sides sum to the same."""
  expected = probabilities.astype(np.float64) / probabilities.astype(np.float64).sum()
  return stats.chisquare(counts, expected * counts.sum()).pvalue


def two_tokens(rule, q_table, p_table):
  """First and second tokens of SAMPLES sequences: two drafts, `rule`, and p for what is missing.

  Tables [V + 1, V]: a token's distribution behind each token, and behind the beginning (row V).
  """
  keys = jax.random.split(jax.random.key(5), (4, SAMPLES))
  q1 = jnp.broadcast_to(q_table[V], (SAMPLES, V))
  x1 = draw(keys[0], q1)
  x2 = draw(keys[1], q_table[x1])
  p = jnp.stack([jnp.broadcast_to(p_table[V], (SAMPLES, V)), p_table[x1], p_table[x2]], axis=1)
  q = jnp.stack([q1, q_table[x1]], axis=1)
  yielded = rule(keys[2], jnp.stack([x1, x2], axis=1), q, p)
  first = yielded.tokens[:, 0]
  second = jnp.where(yielded.accepted > 0, yielded.tokens[:, 1], draw(keys[3], p_table[first]))
  return np.asarray(first), np.asarray(second)


def wrong_residual(keys, drafts, q, p):
  """A rejected token is replaced by one from p where p - q is due."""
  found = accept.accept_sampled(keys, drafts, q, p)
  fresh = jax.random.categorical(keys[0], jnp.log(p), axis=-1).astype(jnp.int32)
  here = jnp.arange(3)[None, :] == found.accepted[:, None]
  return accept.Acceptance(jnp.where(here, fresh, found.tokens), found.accepted)


def wrong_ratio(keys, drafts, q, p):
  """Accepts with probability p where min(1, p / q) is due."""
  return accept.accept_sampled(keys, drafts, jnp.ones_like(q), p)


@pytest.mark.parametrize("near", [0.3, 2.0])
def test_speculative_sampling_keeps_the_distribution(near):
  rng = np.random.default_rng(0)
  logits = rng.normal(size=(V + 1, V))
  p = jnp.asarray(jax.nn.softmax(logits, axis=-1), jnp.float32)
  q = jnp.asarray(jax.nn.softmax(logits + near * rng.normal(size=logits.shape), axis=-1))
  q = q.astype(jnp.float32)
  assert p_value(*two_tokens(accept.accept_sampled, q, p), np.asarray(p)) > 1e-3
  assert p_value(*two_tokens(wrong_residual, q, p), np.asarray(p)) < 1e-6
  assert p_value(*two_tokens(wrong_ratio, q, p), np.asarray(p)) < 1e-6


def test_equal_distributions_reject_nothing():
  p = jax.nn.softmax(jax.random.normal(jax.random.key(0), (50, 3, V)), axis=-1)
  keys = jax.random.split(jax.random.key(1), 50)
  drafts = jnp.argmax(p[:, :2], axis=-1).astype(jnp.int32)
  assert accept.accept_sampled(keys, drafts, p[:, :2], p).accepted.tolist() == [2] * 50


@pytest.mark.parametrize("name", ["specattn", "window"])
def test_decoding_samples_from_the_model_s_distribution(name, decode, reference):
  """The whole loop: the first two tokens of many sequences against exact probabilities."""
  config = ModelConfig("llama", 1, 16, 2, 2, 8, 16, V, 256)
  model = Transformer(config)
  parameters = jax.tree.map(lambda x: 3 * x, model.init(jax.random.key(0)))
  sampler = Sampling(temperature=1.3, top_p=0.95)
  prompt = np.random.default_rng(2).integers(0, V, 12).tolist()
  behind = lambda *more: reference(config, parameters, [*prompt, *more])[0][-1]
  logits = np.stack([*(behind(x) for x in range(V)), behind()])
  p = np.asarray(sampler.probabilities(jnp.asarray(logits, jnp.float32)))
  method = Method(make_selector(name, Budget.parse("4")), 2, sampler)
  counts, texts = np.zeros((V, V)), []
  for seed in range(10):
    found, acceptances = decode(model, parameters, method, [prompt] * 2048, 2, seed=seed, slots=64)
    texts += found
    assert acceptances[0] > 0, "no draft was ever rejected: nothing is tested"
  np.add.at(counts, tuple(np.array(texts).T), 1)
  expected = (p[V][:, None] * p[:V]).ravel()
  possible = expected > 0
  assert counts.ravel()[~possible].sum() == 0
  assert chi_square(counts.ravel()[possible], expected[possible]) > 1e-3


@pytest.mark.parametrize("gamma", [0, 2])
def test_every_round_and_sequence_draws_anew(gamma, tiny, decode):
  """From nearly equal probabilities, a random number used twice would show as a repeated token."""
  selector = make_selector("full", Budget.parse("4")) if gamma else None
  method = Method(selector, gamma, Sampling(temperature=1e6))
  texts, _ = decode(*tiny("gpt"), method, [[1, 2, 3]] * 2, 64)
  assert texts[0] != texts[1]
  assert all(len(set(text)) > 30 for text in texts)  # of 64: 40 +- 3 expected


def test_a_greedy_sampler_is_a_point_distribution():
  logits = jax.random.normal(jax.random.key(0), (4, V))
  p = Greedy().probabilities(logits)
  assert p.sum(axis=-1).tolist() == [1] * 4
  assert p.argmax(axis=-1).tolist() == logits.argmax(axis=-1).tolist()
