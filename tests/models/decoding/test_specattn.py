"""The published selection rule against an independent NumPy implementation of it."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from models.decoding.selectors import Budget, Observation, make_selector
from models.decoding.verify import verify, verify_row_by_row


def published(weights, kv_len, rows, ratio, floor, most):
  """Sets of one sequence: weights [layers, H, T, S] of the verified rows, over the cache.

  decoding_reference: rows 0 and T - 1; candidates exclude the drafts' slots; mean over all heads.
  """
  valid = kv_len - rows + 1
  k = min(max(math.ceil(kv_len * ratio), floor), max(math.ceil(most * ratio), floor), valid)
  voting = [0, rows - 1] if rows > 1 else [0]
  score = weights[:, :, voting].mean(axis=(1, 2))[:, :valid]
  order = np.argsort(-score, axis=-1)
  if k < valid:  # the test means nothing if the last chosen and the first left out are equal
    ranked = np.take_along_axis(score, order, axis=-1)
    assert (ranked[:, k - 1] - ranked[:, k] > 1e-7).all()
  return [set(layer[:k].tolist()) for layer in order], valid


@pytest.mark.parametrize("family", ["llama", "gpt"])
@pytest.mark.parametrize(("ratio", "floor"), [(0.07, 4), (0.25, 8), (0.07, 256)])
@pytest.mark.parametrize("check", [verify, verify_row_by_row])
def test_selection_is_the_published_one(
  family, ratio, floor, check, tiny, ragged, prefilled, reference
):
  model, parameters = tiny(family)
  prompts = ragged(3)
  selector = make_selector("specattn", Budget.parse(str(ratio), floor))
  drafts = np.random.default_rng(3).integers(0, 64, (3, 4))
  run = jax.jit(check, static_argnames=("model", "selector"))
  state, cache, texts = None, None, [list(p) for p in prompts]
  for rows in (1, 5):  # the prompt's last row, then a verification of four drafts
    if cache is None:
      cache, batch = prefilled(model, parameters, prompts)
      tokens = batch.last[:, None]
    else:  # two of the four drafts stood: the rejected last row votes all the same
      cache = cache.with_lengths(cache.lengths + 1)
      tokens = jnp.asarray(np.c_[np.full(3, 9), drafts], jnp.int32)
      texts = [[*text, 9, *more] for text, more in zip(texts, drafts.tolist(), strict=True)]
    seen = run(model, parameters, cache, tokens, selector)
    accepted = jnp.array([min(2, rows - 1)] * 3, jnp.int32)
    observation = Observation(seen.mass, cache.lengths, rows, accepted)
    state = selector.init(observation) if rows == 1 else selector.observe(state, observation)
    lengths = cache.lengths + accepted + 1
    selection = selector.select(state, lengths, model.config.layers, cache.slots)
    cache = seen.cache
    for b, text in enumerate(texts):
      _, weights = reference(model.config, parameters, text)
      sets, valid = published(weights[:, :, -rows:], len(text), rows, ratio, floor, cache.slots)
      assert selection.tail[b] == valid
      for layer, chosen in enumerate(sets):
        pages = np.asarray(selection.pages[layer, b, 0])
        count = int(selection.counts[layer, b])
        assert count == len(chosen)
        assert set(pages[len(pages) - count :].tolist()) == chosen
        assert (pages[: len(pages) - count] == -1).all()
        assert (np.diff(pages[len(pages) - count :]) > 0).all()
