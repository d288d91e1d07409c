"""Each rule's selection against an independent NumPy implementation of it.

The rules as decoding papers and their authors' code have them; weights come from the plain float64
reference of the model, so what is tested is the way from the model to the pages.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from models.decoding.generate import sequence_keys
from models.decoding.loop import start
from models.decoding.method import Method
from models.decoding.selectors import Budget, Observation, make_selector
from models.decoding.verify import verify, verify_row_by_row

GAMMA, RATIO, FLOOR = 4, 0.35, 6
DRAFTS = np.random.default_rng(3).integers(0, 64, (3, GAMMA))


def tokens_of(kv_len, slots):
  """clip(ceil(length * ratio), floor, ceil(most * ratio)), for a cache of so many slots."""
  return min(max(math.ceil(kv_len * RATIO), FLOOR), max(math.ceil(slots * RATIO), FLOOR))


def grouped(weights, kv_heads):
  """Mean over the query heads that share a key/value head: [L, H, ...] to [L, K, ...]."""
  return weights.reshape(weights.shape[0], kv_heads, -1, *weights.shape[2:]).mean(axis=2)


def top(scores, k):
  """The k best of [..., S] as a set; a draw at the edge would make the test mean nothing."""
  order = np.argsort(-scores)
  if 0 < k < len(scores):
    assert scores[order[k - 1]] - scores[order[k]] > 1e-9 * scores.max()
  return set(order[: max(k, 0)].tolist())


class Seen:
  """What a NumPy rule is given of one sequence, after the prompt and after one verification."""

  def __init__(self, config, parameters, reference, prompt, more, accepted, slots):
    self.kv_heads, self.slots, self.accepted = config.kv_heads, slots, accepted
    self.prompt, self.kv_len = len(prompt), len(prompt) + len(more)
    self.valid = self.prompt + 1
    _, self.prompt_weights = reference(config, parameters, prompt)
    _, weights = reference(config, parameters, [*prompt, *more])
    self.rows = weights[:, :, -len(more) :]


def specattn(seen):
  k = min(tokens_of(seen.kv_len, seen.slots), seen.valid)
  score = seen.rows[:, :, [0, -1]].mean(axis=(1, 2))[:, : seen.valid]
  return [[top(of_layer, k)] for of_layer in score]


def pillar(seen):
  """The tail that the first draft sees is charged: accepted drafts and its own entry."""
  length = seen.prompt + seen.accepted + 2
  k = max(tokens_of(length, seen.slots) - (seen.accepted + 1), 0)
  score = grouped(seen.rows, seen.kv_heads).mean(axis=2)[..., : seen.valid]
  return [[top(of_set, min(k, seen.valid)) for of_set in of_layer] for of_layer in score]


def h2o(seen):
  """Half the budget is recent; the rest by the sum over the prompt's last 32 and accepted rows."""
  k = min(tokens_of(seen.kv_len, seen.slots), seen.valid)
  recent = math.ceil(k / 2)
  score = np.zeros((seen.rows.shape[0], seen.kv_heads, seen.kv_len))
  score[..., : seen.prompt] += grouped(seen.prompt_weights, seen.kv_heads)[:, :, -32:].sum(axis=2)
  score += grouped(seen.rows[:, :, : seen.accepted + 1], seen.kv_heads).sum(axis=2)
  latest = set(range(seen.valid - recent, seen.valid))
  older = score[..., : seen.valid - recent]
  return [[top(of_set, k - recent) | latest for of_set in of_layer] for of_layer in older]


def snapkv(seen):
  """From the prompt alone: its last 32 tokens, and the top of what they attended to, pooled."""
  k = min(tokens_of(seen.prompt, seen.slots), seen.prompt)
  older = max(seen.prompt - 32, 0)
  latest = set(range(older, seen.prompt)) if k > 32 else set(range(seen.prompt - k, seen.prompt))
  score = grouped(seen.prompt_weights, seen.kv_heads)[:, :, -32:].sum(axis=2)[..., :older]
  pooled = lambda of_set: np.convolve(of_set, np.ones(5) / 5, "same") if older > 4 else of_set
  return [
    [top(pooled(of_set), k - len(latest)) | latest for of_set in of_layer] for of_layer in score
  ]


RULES = {"specattn": specattn, "pillar": pillar, "h2o": h2o, "snapkv": snapkv}


def after_one_verification(name, check, model, parameters, prefilled, prompts, accepted):
  """The selection that the next round starts with, and the first token that was emitted."""
  selector = make_selector(name, Budget.parse(str(RATIO), FLOOR))
  method = Method(selector, GAMMA)
  cache, batch = prefilled(model, parameters, prompts)
  keys = sequence_keys(jax.random.key(0), len(prompts))
  state = start(model, parameters, method, cache, batch.ends(method.prompt_rows), keys, wanted=16)
  if method.refresh == 0:
    return state.selecting.held.selection, state.token
  rows = jnp.concatenate([state.token[:, None], jnp.asarray(DRAFTS, jnp.int32)], axis=1)
  seen = jax.jit(check, static_argnames=("model", "selector"))(
    model, parameters, state.cache, rows, selector
  )
  stood = jnp.array(accepted, jnp.int32)
  known = selector.observe(
    state.selecting.known, Observation(seen.mass, state.cache.lengths, GAMMA + 1, stood)
  )
  lengths = state.cache.lengths + stood + 1
  return selector.select(known, lengths, model.config.layers, cache.slots), state.token


@pytest.mark.parametrize(
  ("name", "family", "check"),
  [
    *[(name, family, verify) for name in RULES for family in ("llama", "gpt")],
    ("pillar", "llama", verify_row_by_row),  # whose rows are summed in the layer
    ("h2o", "gpt", verify_row_by_row),  # whose rows are not
  ],
)
def test_selection_is_the_published_one(name, family, check, tiny, ragged, prefilled, reference):
  model, parameters = tiny(family)
  prompts, accepted = ragged(3), [2, 4, 0]
  selection, tokens = after_one_verification(
    name, check, model, parameters, prefilled, prompts, accepted
  )
  for b, prompt in enumerate(prompts):
    more = [int(tokens[b]), *DRAFTS[b].tolist()]
    seen = Seen(model.config, parameters, reference, prompt, more, accepted[b], 256)
    sets = RULES[name](seen)
    assert selection.tail[b] == (seen.prompt if name == "snapkv" else seen.valid)
    for layer, of_layer in enumerate(sets):
      for z, expected in enumerate(of_layer):
        pages = np.asarray(selection.pages[layer, b, z])
        count = int(selection.counts[layer, b])
        assert set(pages[len(pages) - count :].tolist()) == expected
        assert (pages[: len(pages) - count] == -1).all()
