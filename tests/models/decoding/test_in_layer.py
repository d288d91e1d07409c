"""Quest and the oracle, which select with the draft's own query, against plain NumPy."""

import jax.numpy as jnp
import numpy as np
import pytest

from models.decoding.selectors import Budget, Observation, make_selector
from models.decoding.selectors.quest import upper_bounds
from models.kv_cache import KVCache

B, H, K, S, D = 3, 4, 2, 64, 8
LENGTHS = np.array([64, 37, 3])


def made(seed=0):
  """Queries [B, H, 1, D] and keys [B, K, S, D], with NaN where nothing was written."""
  rng = np.random.default_rng(seed)
  q = rng.normal(size=(B, H, 1, D)).astype(np.float32)
  keys = rng.normal(size=(B, K, S, D)).astype(np.float32)
  for b, length in enumerate(LENGTHS):
    keys[b, :, length:] = np.nan
  return q, keys


def cache_of(keys, lengths):
  keys = (jnp.asarray(keys),)
  return KVCache(keys, keys, jnp.asarray(lengths, jnp.int32))


def observed(keys, lengths, rows=1, accepted=0):
  stood = jnp.full(B, accepted, jnp.int32)
  return Observation(None, jnp.asarray(lengths, jnp.int32), rows, stood, cache_of(keys, lengths))


def chosen(pages, b, z):
  return [page for page in np.asarray(pages)[b, z].tolist() if page >= 0]


def brute_force_bound(q, page):
  """The most that q . k can be if every channel of k is somewhere between the page's extremes."""
  return sum(
    max(channel * low, channel * high)
    for channel, low, high in zip(q, page.min(axis=0), page.max(axis=0), strict=True)
  )


@pytest.mark.parametrize("aggregation", ["max", "mean"])
def test_quest_takes_the_pages_of_the_highest_bounds(aggregation):
  q, keys = made()
  quest = make_selector(
    "quest", Budget.parse("24"), page_size=8, dense_layers=0, head_aggregation=aggregation
  )
  (state,) = quest.init(observed(keys, LENGTHS - 1))
  lengths = jnp.asarray(LENGTHS, jnp.int32)
  pages = quest.select_in_layer(state, jnp.asarray(q), jnp.asarray(keys), lengths, lengths)
  bounds = np.asarray(upper_bounds(state, jnp.asarray(q)))
  for b, length in enumerate(LENGTHS):
    for z in range(K):
      scores = []
      for page in range(length // 8):
        inside = keys[b, z, page * 8 : page * 8 + 8]
        of_heads = [brute_force_bound(q[b, 2 * z + g, 0], inside) for g in range(2)]
        np.testing.assert_allclose(bounds[b, z, :, page], of_heads, rtol=1e-5)
        assert (np.array(of_heads) >= (q[b, 2 * z : 2 * z + 2, 0] @ inside.T).max(axis=1)).all()
        scores.append(max(of_heads) if aggregation == "max" else sum(of_heads))
      assert chosen(pages, b, z) == sorted(np.argsort(-np.array(scores))[:3].tolist())


def test_quest_s_bounds_follow_the_text():
  """After rounds that accept some drafts and roll others back, as if made anew."""
  rng = np.random.default_rng(0)
  quest = make_selector("quest", Budget.parse("24"), page_size=4, dense_layers=0)
  lengths, keys = np.array([20, 5, 0]), np.full((B, K, S, D), np.nan, np.float32)
  for b in range(B):
    keys[b, :, : lengths[b]] = rng.normal(size=(K, lengths[b], D))
  state = quest.init(observed(keys, lengths))
  for accepted in (0, 6, 2, 3, 6, 0, 5):
    for b in range(B):  # the verification's rows, over what drafts left behind
      keys[b, :, lengths[b] : lengths[b] + 7] = rng.normal(size=(K, 7, D))
    state = quest.observe(state, observed(keys, lengths, rows=7, accepted=accepted))
    lengths = lengths + accepted + 1
  (bounds,) = state
  for b in range(B):
    whole = keys[b, :, : lengths[b] // 4 * 4].reshape(K, -1, 4, D)
    pages = whole.shape[1]
    np.testing.assert_array_equal(bounds.smallest[b, :, :pages], whole.min(axis=2))
    np.testing.assert_array_equal(bounds.largest[b, :, :pages], whole.max(axis=2))


@pytest.mark.parametrize("page_size", [1, 4])
@pytest.mark.parametrize("sets", ["group", "all"])
def test_the_oracle_takes_the_true_top(page_size, sets):
  q, keys = made()
  oracle = make_selector("oracle", Budget.parse("12"), page_size=page_size, head_sets=sets)
  lengths, newest = LENGTHS - 2, LENGTHS  # two drafts: seen, but no candidates
  pages = oracle.select_in_layer(
    None,
    jnp.asarray(q),
    jnp.asarray(keys),
    jnp.asarray(lengths, jnp.int32),
    jnp.asarray(newest, jnp.int32),
  )
  for b in range(B):
    weights = []
    for h in range(H):
      logits = keys[b, h // 2, : newest[b]].astype(np.float64) @ q[b, h, 0] / np.sqrt(D)
      weights.append(np.exp(logits) / np.exp(logits).sum())
    whole = lengths[b] // page_size
    of_page = np.array(weights)[:, : whole * page_size].reshape(H, whole, page_size).sum(axis=2)
    of_sets = (
      of_page.reshape(K, 2, whole).mean(axis=1) if sets == "group" else of_page.mean(0)[None]
    )
    for z, scores in enumerate(of_sets):
      assert chosen(pages, b, z) == sorted(np.argsort(-scores)[: 12 // page_size].tolist())
