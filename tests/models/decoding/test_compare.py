"""A changed token is found, a near-tie is counted, and what follows it is still compared."""

import jax.numpy as jnp
import pytest

from models.decoding.compare import NEAR_TIE, Comparison, complete, follow, judge
from models.decoding.method import Method


def test_near_ties_are_counted_and_comparison_goes_on():
  text, choices = [1, 2, 3, 4], [1, 9, 3, 8]
  assert judge(text, choices, [0.0, 1e-5, 0.0, 2e-5], NEAR_TIE) == Comparison(2, None)
  assert judge(text, choices, [0.0, 1e-5, 0.0, 0.1], NEAR_TIE) == Comparison(1, 3)
  assert judge(text, choices, [0.0, float("nan"), 0.0, 0.0], NEAR_TIE) == Comparison(0, 1)


def test_texts_are_followed_by_the_model(tiny, ragged, prefilled, decode):
  model, parameters = tiny("llama")
  prompts = ragged(3)
  texts, _ = decode(model, parameters, Method(), prompts, 12)
  texts[0] = texts[0][:7]  # an end token came early
  texts[2][5] = (texts[2][5] + 1) % 64
  cache, batch = prefilled(model, parameters, prompts)
  judged, cache = follow(model, parameters, cache, batch.last, texts)
  assert judged == [Comparison(0, None), Comparison(0, None), Comparison(0, 5)]
  assert cache.lengths.tolist() == [69, 2, 128]


def test_a_model_with_two_equal_tokens_ties_exactly(tiny, ragged, prefilled, decode):
  """Each token has a twin with the same embedding and logits: choosing the twin is a near-tie."""
  model, parameters = tiny("gpt")
  resident = parameters["resident"]
  twin = lambda x, axis: jnp.take(x, jnp.arange(64) // 2 * 2, axis=axis)
  table = {"tokens": {"embedding": twin(resident["embed"]["tokens"]["embedding"], 0)}}
  head = {"logits": {"kernel": twin(resident["head"]["logits"]["kernel"], 1)}}
  tied = {
    "resident": {"embed": resident["embed"] | table, "head": resident["head"] | head},
    "units": parameters["units"],
  }
  prompts = ragged(1)
  texts, _ = decode(model, tied, Method(), prompts, 8)
  other = [[token ^ 1 if i in (2, 6) else token for i, token in enumerate(texts[0])]]
  cache, batch = prefilled(model, tied, prompts)
  judged, _ = follow(model, tied, cache, batch.last, other)
  assert judged == [Comparison(2, None)]


@pytest.mark.parametrize(
  "text, end_token, ends",
  [
    ([1, 2, 3], None, True),
    ([1, 2], None, False),
    ([1, 2], 2, True),
    ([1, 2, 3], 2, False),
    ([1, 3], 2, False),
    ([], None, False),
  ],
)
def test_a_text_ends_at_its_end_token_or_when_it_has_all(text, end_token, ends):
  assert complete(text, 3, end_token) == ends


@pytest.mark.parametrize("wrong", [None, 0])
def test_identical_means_nothing_wrong(wrong):
  assert Comparison(3, wrong).identical == (wrong is None)
