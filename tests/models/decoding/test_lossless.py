"""Speculation changes no token: every selector, draft length, page size, batch and family."""

import dataclasses

import jax
import jax.numpy as jnp
import pytest

from models import kv_cache
from models.decoding.generate import sequence_keys
from models.decoding.loop import Method, advance, start
from models.decoding.selectors import Budget, make_selector
from models.decoding.selectors.base import RoundSettings, Selection, Unscored
from models.decoding.selectors.scored import Scored

WANTED = 24


@dataclasses.dataclass(frozen=True)
class Nothing(Unscored, RoundSettings):
  """Selects no entry: drafts see the tail alone."""

  capacity: int = 0

  def select(self, state, lengths, layers, slots):
    del state, slots
    batch = lengths.shape[0]
    pages = jnp.full((layers, batch, 1, self.capacity), -1, jnp.int32)
    return Selection(pages, jnp.zeros((layers, batch), jnp.int32), tail=lengths)


BUDGET = Budget.parse("0.2", floor=8)
PER_HEAD = Scored(
  BUDGET,
  1,
  rows="all",
  head_sets="group",
  rejected_rows_vote=False,
  decay=0.5,
  sink=2,
  recent=4,
  charge_tail=True,
)

CASES = {
  # selector, family, draft length, sequences, bit exact
  "specattn": (make_selector("specattn", BUDGET), "llama", 4, 3, False),
  "specattn pages": (make_selector("specattn", BUDGET, page_size=16), "gpt", 3, 8, False),
  "specattn one": (make_selector("specattn", BUDGET), "gpt", 1, 1, False),
  "specattn bits": (make_selector("specattn", BUDGET), "llama", 3, 1, True),
  "window": (make_selector("window", BUDGET), "gpt", 8, 1, False),
  "window pages": (make_selector("window", Budget.parse("48"), page_size=16), "llama", 3, 3, False),
  "full": (make_selector("full", BUDGET), "llama", 4, 3, False),
  "full pages bits": (make_selector("full", BUDGET, page_size=16), "gpt", 1, 3, True),
  "nothing": (Nothing(BUDGET), "llama", 4, 3, False),
  "nothing of five": (Nothing(BUDGET, capacity=5), "gpt", 2, 1, False),
  "a set per head": (PER_HEAD, "llama", 3, 3, False),
  **{
    name: (
      make_selector(name, BUDGET, **({"dense_layers": 1} if name == "quest" else {})),
      "llama",
      3,
      3,
      False,
    )
    for name in ("pillar", "snapkv", "h2o", "quest", "oracle", "random")
  },
}


@pytest.fixture(scope="module")
def autoregressive():
  return {}


@pytest.fixture
def expected(autoregressive, tiny, ragged, decode):
  """expected(family, sequences): the autoregressive texts, decoded once."""

  def get(family, sequences):
    if (family, sequences) not in autoregressive:
      texts, _ = decode(*tiny(family), Method(), ragged(sequences), WANTED)
      autoregressive[family, sequences] = texts
    return autoregressive[family, sequences]

  return get


@pytest.mark.parametrize("case", CASES)
def test_tokens_are_the_autoregressive_ones(case, expected, tiny, ragged, decode):
  selector, family, gamma, sequences, bit_exact = CASES[case]
  method = Method(selector, gamma, bit_exact=bit_exact)
  texts, acceptances = decode(*tiny(family), method, ragged(sequences), WANTED)
  assert texts == expected(family, sequences)
  assert all(len(text) == WANTED for text in texts)
  if case.startswith("full"):
    assert sum(acceptances[:-1]) == 0, "a draft that sees everything was rejected"


def test_autoregressive_texts_are_the_reference_s(expected, tiny, ragged, reference):
  model, parameters = tiny("llama")
  for prompt, text in zip(ragged(3), expected("llama", 3), strict=True):
    logits, _ = reference(model.config, parameters, [*prompt, *text])
    assert logits[len(prompt) - 1 : -1].argmax(axis=-1).tolist() == text


def test_a_text_does_not_depend_on_its_batch(expected, tiny, ragged, decode):
  alone, _ = decode(*tiny("llama"), Method(), ragged(3)[2:], WANTED)
  assert alone[0] == expected("llama", 3)[2]


def test_streaming_gives_the_same(expected, tiny, ragged, decode):
  method = Method(make_selector("specattn", BUDGET), 4)
  texts, _ = decode(*tiny("llama"), method, ragged(3), WANTED, step=5)
  assert [text[:20] for text in texts] == [text[:20] for text in expected("llama", 3)]


def test_stale_slots_do_not_matter(expected, tiny, ragged, decode):
  """The other tests decode with NaN in every stale slot; zeros must give the same."""
  texts, _ = decode(*tiny("llama"), Method(), ragged(3), WANTED, poison=False)
  assert texts == expected("llama", 3)


@pytest.mark.parametrize("selector", [None, make_selector("full", BUDGET)])
def test_an_end_token_truncates_even_inside_an_accepted_run(
  selector, expected, tiny, ragged, decode
):
  whole = expected("llama", 3)
  end = whole[0][6]
  method = Method(selector, 0 if selector is None else 4, end_token=end)
  texts, _ = decode(*tiny("llama"), method, ragged(3), WANTED)
  for text, full_text in zip(texts, whole, strict=True):
    stop = full_text.index(end) + 1 if end in full_text else WANTED
    assert text == full_text[:stop]


def test_a_draft_length_without_selector_and_none_with_one_are_refused():
  with pytest.raises(ValueError, match="--draft_length=0 drafts nothing"):
    Method(make_selector("full", BUDGET), 0)
  with pytest.raises(ValueError, match="needs a selector"):
    Method(None, 3)


def test_the_cache_is_updated_in_place(tiny):
  """The compiled loop needs far less memory beside its arguments than a copy of the cache."""
  model, parameters = tiny("llama")
  method = Method(make_selector("specattn", Budget.parse("16")), 2)
  cache = kv_cache.make(model.config, 1, 8192)
  size = sum(x.nbytes for x in cache.keys + cache.values)
  ends = jnp.zeros((1, 1), jnp.int32)
  begin = lambda p, c, k: start(model, p, method, c, ends, k, wanted=8)
  state = jax.eval_shape(begin, parameters, cache, sequence_keys(jax.random.key(0), 1))
  compiled = advance.lower(model, parameters, method, state, jnp.int32(8)).compile()
  assert compiled.memory_analysis().temp_size_in_bytes < 0.75 * size
