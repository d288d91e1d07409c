"""Acceptance keeps tokens (greedy) and distributions (sampling): exactly, and by chi-square."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from models.config import ModelConfig
from models.decoding import accept
from models.decoding import draft as drafting
from models.decoding import round as rounds
from models.decoding.method import Method
from models.decoding.sampling import Greedy, Sampling, draw
from models.decoding.selectors import SELECTORS, Budget, make_selector
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


def right(keys, drafts, q, p):
  return accept.accept_sampled(keys, drafts, q, lambda q_of_row: q_of_row, p)


def wrong_residual(keys, drafts, q, p):
  """A rejected token is replaced by one from p where p - q is due."""
  found = right(keys, drafts, q, p)
  fresh = jax.random.categorical(keys[0], jnp.log(p), axis=-1).astype(jnp.int32)
  here = jnp.arange(3)[None, :] == found.accepted[:, None]
  return accept.Acceptance(jnp.where(here, fresh, found.tokens), found.accepted)


def wrong_ratio(keys, drafts, q, p):
  """Accepts with probability p where min(1, p / q) is due."""
  return right(keys, drafts, jnp.ones_like(q), p)


@pytest.mark.parametrize("near", [0.3, 2.0])
def test_speculative_sampling_keeps_the_distribution(near):
  rng = np.random.default_rng(0)
  logits = rng.normal(size=(V + 1, V))
  p = jnp.asarray(jax.nn.softmax(logits, axis=-1), jnp.float32)
  q = jnp.asarray(jax.nn.softmax(logits + near * rng.normal(size=logits.shape), axis=-1))
  q = q.astype(jnp.float32)
  assert p_value(*two_tokens(right, q, p), np.asarray(p)) > 1e-3
  assert p_value(*two_tokens(wrong_residual, q, p), np.asarray(p)) < 1e-6
  assert p_value(*two_tokens(wrong_ratio, q, p), np.asarray(p)) < 1e-6


def test_equal_distributions_reject_nothing():
  p = jax.nn.softmax(jax.random.normal(jax.random.key(0), (50, 3, V)), axis=-1)
  keys = jax.random.split(jax.random.key(1), 50)
  drafts = jnp.argmax(p[:, :2], axis=-1).astype(jnp.int32)
  assert right(keys, drafts, p[:, :2], p).accepted.tolist() == [2] * 50


FEW = 4  # tokens of a vocabulary of which all texts of three tokens are counted


@pytest.fixture(scope="module")
def small():
  """A model of FEW tokens, in which attention decides and no token is sure; and a prompt."""
  model = Transformer(ModelConfig("llama", 1, 16, 2, 2, 8, 16, FEW, 256))
  parameters = jax.tree.map(lambda x: 3 * x, model.init(jax.random.key(3)))
  parameters["units"][0]["attention"]["output"]["kernel"] *= 5
  parameters["resident"]["head"]["logits"]["kernel"] /= 9
  return model, parameters, np.random.default_rng(2).integers(0, FEW, 20).tolist()


SAMPLER = Sampling(temperature=1.3, top_p=0.95)


def sampled(name, small, decode):
  """How often each text of three tokens came: the first from the prompt's own row, the second and
  third from a round of two drafts."""
  model, parameters, prompt = small
  settings = {"dense_layers": 0, "page_size": 2} if name == "quest" else {}
  method = Method(make_selector(name, Budget.parse("2"), **settings), 2, SAMPLER)
  texts, acceptances = decode(model, parameters, method, [prompt] * 20_480, 3, slots=64)
  assert name == "full" or sum(acceptances[:-1]) > 50, "nothing is tested without rejections"
  counts = np.zeros((FEW, FEW, FEW))
  np.add.at(counts, tuple(np.array(texts).T), 1)
  return counts.ravel()


@pytest.fixture(scope="module")
def expected(small):
  """The exact probabilities, from the model's reference."""
  made = []

  def get(reference):
    if not made:
      model, parameters, prompt = small
      p = np.zeros((FEW, FEW, FEW))
      behind = lambda *more: np.asarray(
        SAMPLER.probabilities(
          jnp.asarray(reference(model.config, parameters, [*prompt, *more])[0][-1], jnp.float32)
        ),
        np.float64,
      )
      first = behind()
      for a in range(FEW):
        second = behind(a)
        for b in range(FEW):
          p[a, b] = first[a] * second[b] * behind(a, b)
      made.append(p.ravel())
    return made[0]

  return get


@pytest.mark.parametrize("name", SELECTORS)
def test_decoding_samples_from_the_model_s_distribution(name, small, decode, expected, reference):
  """The whole loop: the tokens of 20,480 sequences against exact probabilities."""
  counts, p = sampled(name, small, decode), expected(reference)
  assert counts[p == 0].sum() == 0
  assert chi_square(counts[p > 0], p[p > 0]) > 1e-3


def test_a_wrong_rule_in_the_loop_is_found(small, decode, expected, reference, monkeypatch):
  """The token behind a rejected draft from p, where p - q is due."""

  def wrong(keys, drafts, hidden, distribution, p):
    return accept_sampled(keys, drafts, hidden, lambda x: distribution(x) * 0.5, p)

  accept_sampled = accept.accept_sampled
  monkeypatch.setattr(rounds, "accept_sampled", wrong)
  jax.clear_caches()
  counts, p = sampled("window", small, decode), expected(reference)
  jax.clear_caches()
  assert chi_square(counts[p > 0], p[p > 0]) < 1e-6


def test_acceptance_uses_the_very_distribution_drafts_were_drawn_from(small, decode, monkeypatch):
  """To the bit, though it is computed anew."""
  seen = {"draft": set(), "round": set()}
  of_module = {"draft": drafting, "round": rounds}
  for where, module in of_module.items():
    original = module.draft_distribution

    def recorded(*arguments, where=where, original=original):
      q = original(*arguments)
      keep = lambda rows: seen[where].update(row.tobytes() for row in np.asarray(rows))
      jax.debug.callback(keep, q)
      return q

    monkeypatch.setattr(module, "draft_distribution", recorded)
  jax.clear_caches()
  model, parameters, prompt = small
  method = Method(make_selector("window", Budget.parse("3")), 3, SAMPLER)
  decode(model, parameters, method, [prompt, prompt[:5]], 30, slots=64)
  jax.effects_barrier()
  jax.clear_caches()
  assert len(seen["round"]) > 20
  assert seen["round"] <= seen["draft"]


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
