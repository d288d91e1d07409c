"""Speculation changes no token: every selector, draft length, page size, batch and family.

The test command takes a sample of the grid; `scripts/grid decoding` the whole of it.
"""

import dataclasses
import itertools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from models import kv_cache
from models.decoding.compare import follow
from models.decoding.draft_length import RoundSeconds
from models.decoding.generate import Generator, sequence_keys, slots_for
from models.decoding.loop import advance, start
from models.decoding.method import Method
from models.decoding.pacing import Pace, advance_choosing
from models.decoding.selectors import SELECTORS, Budget, make_selector
from models.decoding.selectors.base import RoundSettings, Selection, Unscored
from models.decoding.selectors.scored import Scored
from models.transformer import Transformer

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


class Case(NamedTuple):
  selector: str
  family: str
  draft_length: int
  page_size: int
  sequences: int
  bit_exact: bool


def grid() -> list[Case]:
  """Every selector, draft length, page size, batch and family, with and without --bit_exact."""
  return [
    Case(*values)
    for values in itertools.product(
      SELECTORS, ("llama", "gpt"), (1, 3, 4, 8), (1, 16), (1, 3, 8), (False, True)
    )
  ]


def sample() -> list[Case]:
  """Each selector once and every third bit-exact too, the other values taking turns."""
  cases = []
  for i, name in enumerate(SELECTORS):
    family, other = ("llama", "gpt") if i % 2 else ("gpt", "llama")
    length, page_size = (1, 3, 4, 8)[i % 4], (1, 16)[i // 2 % 2]
    cases.append(Case(name, family, length, page_size, (3, 1, 8)[i % 3], False))
    if i % 3 == 1:
      cases.append(Case(name, other, length, 17 - page_size, 3, True))
  return cases


def pytest_generate_tests(metafunc):
  if "case" in metafunc.fixturenames:
    cases = grid() if metafunc.config.getoption("whole_grid") else sample()
    metafunc.parametrize("case", cases, ids=lambda case: "-".join(map(str, case)))


# Every setting that changes what a program computes, and not only what is selected.
VARIED = {
  "nothing of five": (Nothing(BUDGET, capacity=5), 2),
  "refresh": (Scored(BUDGET, 16, refresh=3, rows="all", charge_tail=True, sink=2, recent=4), 3),
  "all settings": (
    Scored(
      BUDGET,
      rows="last",
      rejected_rows_vote=False,
      dense_layers=1,
      decay=0.5,
      head_aggregation="max",
      smoothing=3,
      coverage=0.9,
      prompt_rows=8,
      refresh=2,
    ),
    3,
  ),
}


@pytest.fixture(scope="module")
def autoregressive():
  return {}


@pytest.fixture
def expected(autoregressive, tiny, ragged, decode):
  """expected(family, sequences): the autoregressive texts, decoded once; expected(family,
  sequences, b): that of sequence b decoded alone, as bits may depend on the batch."""

  def get(family, sequences, alone=None):
    if (family, sequences, alone) not in autoregressive:
      prompts = ragged(sequences)
      if alone is None:
        found, _ = decode(*tiny(family), Method(), prompts, WANTED)
      else:
        found = Generator(*tiny(family), Method()).generate([prompts[alone]], WANTED)[0]
      autoregressive[family, sequences, alone] = found
    return autoregressive[family, sequences, alone]

  return get


def test_tokens_are_the_autoregressive_ones(case, expected, tiny, ragged, decode, prefilled):
  dense = {"dense_layers": 1} if case.selector == "quest" else {}
  selector = make_selector(case.selector, BUDGET, page_size=case.page_size, **dense)
  method = Method(selector, case.draft_length, bit_exact=case.bit_exact)
  prompts, wanted = ragged(case.sequences), expected(case.family, case.sequences)
  if case.bit_exact:  # each sequence as if it were alone, whatever its batch
    texts = Generator(*tiny(case.family), method).generate(prompts, WANTED)
    assert texts == [expected(case.family, case.sequences, b) for b in range(case.sequences)]
    return
  texts, acceptances = decode(*tiny(case.family), method, prompts, WANTED)
  if texts != wanted:
    cache, batch = prefilled(*tiny(case.family), prompts)
    judged, _ = follow(*tiny(case.family), cache, batch.last, texts)
    assert all(verdict.identical for verdict in judged), judged
  assert all(len(text) == WANTED for text in texts)
  if case.selector == "full":
    assert sum(acceptances[:-1]) == 0, "a draft that sees everything was rejected"


@pytest.mark.parametrize("name", VARIED)
def test_settings_change_no_token(name, expected, tiny, ragged, decode):
  texts, _ = decode(*tiny("llama"), Method(*VARIED[name]), ragged(3), WANTED)
  assert texts == expected("llama", 3)


@pytest.mark.parametrize(
  ("name", "settings"),
  [
    ("pillar", {"refresh": 0, "prompt_rows": 4}),
    ("quest", {"dense_layers": 1, "page_size": 8}),
    ("oracle", {"page_size": 4}),
    ("full", {"refresh": 3, "dense_layers": 1}),
    ("full", {"refresh": 2**31 - 1}),
  ],
)
def test_with_everything_selected_every_draft_stands(
  name, settings, expected, tiny, ragged, decode
):
  """Also as the tail grows through rounds that keep their selection."""
  selector = make_selector(name, Budget.parse("1.0"), **settings)
  texts, acceptances = decode(*tiny("llama"), Method(selector, 4), ragged(3), WANTED)
  assert texts == expected("llama", 3)
  assert sum(acceptances[:-1]) == 0


def test_rounds_beyond_the_text_s_end_take_no_slots(tiny):
  config = tiny("llama")[0].config
  hold = lambda rounds: Method(make_selector("full", BUDGET, refresh=rounds), 4)
  assert slots_for(config, hold(2**31 - 1), 8, WANTED) == slots_for(config, hold(WANTED), 8, WANTED)


def test_a_selection_holds_for_its_rounds(tiny, ragged, prefilled):
  model, parameters = tiny("llama")
  method = Method(make_selector("specattn", BUDGET, refresh=3), 2)
  cache, batch = prefilled(model, parameters, ragged(3))
  keys = sequence_keys(jax.random.key(0), 3)
  state = start(model, parameters, method, cache, batch.ends(1), keys, wanted=40)
  held = []
  for _ in range(7):
    # The slowest sequence has emitted one token a round at least.
    rounds = int(state.selecting.rounds[0])
    state = advance(model, parameters, method, state, state.emitted.min() + 1)
    assert state.selecting.rounds.tolist() == [rounds + 1] * 3
    held.append(np.asarray(state.selecting.held.selection.pages).tobytes())
  assert [held[i] == held[i - 1] for i in range(1, 7)] == [True, True, False, True, True, False]


def test_autoregressive_texts_are_the_reference_s(expected, tiny, ragged, reference):
  model, parameters = tiny("llama")
  for prompt, text in zip(ragged(3), expected("llama", 3), strict=True):
    logits, _ = reference(model.config, parameters, [*prompt, *text])
    assert logits[len(prompt) - 1 : -1].argmax(axis=-1).tolist() == text


def test_under_bit_exact_a_text_does_not_depend_on_its_batch(tiny):
  """Nor on how large a cache the longest prompt of the batch makes."""
  model, parameters = tiny("llama")
  model = Transformer(dataclasses.replace(model.config, context=2048))
  rng = np.random.default_rng(0)
  prompts = [rng.integers(0, 64, length).tolist() for length in (40, 1200)]
  method = Method(make_selector("specattn", BUDGET), 3, bit_exact=True)
  generator = Generator(model, parameters, method)
  texts = generator.generate(prompts, WANTED)
  assert generator.generate(prompts[:1], WANTED) == texts[:1]
  plain = Generator(model, parameters, Method(bit_exact=True))
  assert plain.generate(prompts, WANTED) == texts


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
  method = dataclasses.replace(method, draft_lengths=(0, 1, 2))
  pace = jax.eval_shape(lambda: Pace.fresh(method))
  costs = RoundSeconds(jnp.ones(2), jnp.ones(3), jnp.ones(3))
  rest = (pace, costs, jnp.int32(8), jnp.zeros(1, bool))
  choosing = advance_choosing.lower(model, parameters, method, state, *rest).compile()
  assert choosing.memory_analysis().temp_size_in_bytes < 0.75 * size
