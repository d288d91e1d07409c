"""Rounds of several draft lengths over one state: no token changes, whatever is chosen and when."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from models.decoding import pacing
from models.decoding.continuous import ContinuousBatch
from models.decoding.draft_length import RoundSeconds
from models.decoding.generate import Generator, pad, sequence_keys
from models.decoding.loop import start
from models.decoding.method import Method
from models.decoding.pacing import Pacer
from models.decoding.selectors import Budget, make_selector

WANTED, BUDGET = 72, Budget.parse("0.2", floor=8)
LENGTHS = (0, 1, 3)
# By which drafts pay as long as they stand: so lengths alternate, and are given up and tried again.
COSTS = jnp.array([1.0, 1.4, 2.2])
SECONDS = RoundSeconds(jnp.array([8.0, 200.0]), COSTS, COSTS)


@pytest.mark.parametrize(
  ("name", "settings"),
  [
    ("specattn", {}),
    ("h2o", {"refresh": 3, "prompt_rows": 4}),
    ("snapkv", {"prompt_rows": 4}),
    ("quest", {"dense_layers": 1, "page_size": 8}),
  ],
)
def test_tokens_are_the_autoregressive_ones(name, settings, tiny, ragged, decode, prefilled):
  model, parameters = tiny("llama")
  plain, _ = decode(model, parameters, Method(), ragged(3), WANTED, slots=512)
  method = Method(make_selector(name, BUDGET, **settings), 3, draft_lengths=LENGTHS)
  cache, batch = prefilled(model, parameters, ragged(3), slots=512)
  keys, ends = sequence_keys(jax.random.key(0), 3), batch.ends(method.prompt_rows)
  state = start(model, parameters, method, cache, ends, keys, wanted=WANTED)
  generator = Generator(model, parameters, method)
  state, tallies = generator.finish(state, WANTED, SECONDS)
  assert generator.texts(state) == plain
  assert len(tallies) > 1, "the length changed on the way"
  assert sum(map(sum, tallies.values())) == int(state.acceptances.sum())


@pytest.mark.parametrize(
  ("name", "settings"), [("specattn", {}), ("specattn", {"refresh": 3}), ("quest", {})]
)
def test_drafts_read_what_autoregressive_rounds_wrote(name, settings, tiny, ragged, prefilled):
  """Of a selector that selects everything, every draft stands: none of its entries may be old."""
  model, parameters = tiny("llama")
  method = Method(make_selector(name, Budget.parse("1.0"), **settings), 3, draft_lengths=LENGTHS)
  cache, batch = prefilled(model, parameters, ragged(1))
  keys, ends = sequence_keys(jax.random.key(0), 1), batch.ends(method.prompt_rows)
  state = start(model, parameters, method, cache, ends, keys, wanted=WANTED)
  pacer, nobody = Generator(model, parameters, method).pacer(SECONDS), np.zeros(1, bool)
  for best, rounds in ((0, 6), (2, 4), (0, 5), (2, 3)):
    free = jnp.ones(3).at[best].set(1e-3)
    pacer.seconds = RoundSeconds(jnp.array([0.0, 1.0]), free, free)
    state, last = pacer.advance(state, rounds, nobody)
    assert last.drafts.shape == (1, LENGTHS[best])
  assert pacer.tallies == {0: [6 + 1 + 5 + 1], 3: [0, 0, 0, 3 + 2]}


@pytest.mark.parametrize("rounds", [{}, {"rounds": 1}])
def test_a_queue_of_several_lengths_gives_each_prompt_s_own_text(tiny, ragged, rounds):
  """Texts end by their length or an end token; places are empty at the queue's end."""
  prompts, model = ragged(5), tiny("llama")
  plain = [Generator(*model, Method()).generate([prompt], 40)[0] for prompt in prompts]
  end = plain[1][6]
  expected = [text[: text.index(end) + 1] if end in text else text for text in plain]
  assert len({len(text) for text in expected}) > 1
  selector = make_selector("specattn", BUDGET)
  method = Method(selector, 3, draft_lengths=LENGTHS, end_token=end)
  batch = ContinuousBatch(Generator(*model, method), size=2, slots=1024, wanted=40)
  batch.pace(SECONDS)
  texts = [[] for _ in prompts]
  for emission in batch.decode(prompts, jax.random.key(0), **rounds):
    texts[emission.number] += emission.tokens
    now = emission.tokens[emission.begin :]
    assert len(emission.drafts) in LENGTHS
    assert now[: emission.accepted] == emission.drafts[: len(now)][: emission.accepted]
    assert emission.acceptances is not None or len(now) == emission.accepted + 1
  assert texts == expected
  assert len(batch.pacer.tallies) > 1, "the length changed on the way"


def test_rounds_are_timed_for_every_length(tiny):
  generator = Generator(
    *tiny("gpt"), Method(make_selector("snapkv", BUDGET), 3, draft_lengths=LENGTHS)
  )
  batch = ContinuousBatch(generator, size=2, slots=512, wanted=8)
  batch.warm_up()
  assert batch.pacer is not None and batch.pacer.seconds is not None
  _, low, high = batch.pacer.seconds
  assert len(low) == len(high) == len(LENGTHS)
  assert all(0 < t < 10 for t in (*low, *high))


@pytest.mark.parametrize("index", range(len(LENGTHS)))
def test_what_is_timed_are_rounds_of_the_length_asked_for(index, tiny, ragged, prefilled):
  """Everything is selected, so that as many drafts stand as there are."""
  model, parameters = tiny("llama")
  method = Method(make_selector("specattn", Budget.parse("1.0")), 3, draft_lengths=LENGTHS)
  cache, batch = prefilled(model, parameters, ragged(1))
  keys, ends = sequence_keys(jax.random.key(0), 1), batch.ends(method.prompt_rows)
  state = start(model, parameters, method, cache, ends, keys, wanted=WANTED)
  state, _ = pacing._timed(model, parameters, method, 60, state, index, 5)
  assert state.acceptances.tolist() == [[5 * (a == LENGTHS[index]) for a in range(4)]]


def test_costs_are_those_of_the_texts_that_go_on(tiny):
  """At few tokens drafts are dear, at many cheap; the short text has ended."""
  model, parameters = tiny("llama")
  method = Method(make_selector("specattn", BUDGET), 3, draft_lengths=LENGTHS)
  generator = Generator(model, parameters, method)
  state = generator.start(
    pad([[1], [2]]), generator.empty_cache(2, 512), sequence_keys(jax.random.key(0), 2), 8
  )
  state = state._replace(cache=state.cache.with_lengths(jnp.array([8, 200])))
  low, high = jnp.array([1.0, 9.0, 9.0]), jnp.array([1.0, 1.1, 1.2])
  seconds = RoundSeconds(jnp.array([8.0, 200.0]), low, high)
  for ended, index in (([True, False], 2), ([False, True], 0)):
    now = state._replace(ended=jnp.array(ended))
    stretch, _ = pacing._choose(method, now, pacing.Pace.fresh(method), seconds)
    assert stretch.index == index


def test_costs_are_for_a_method_that_chooses(tiny):
  with pytest.raises(ValueError, match="Seconds of a round are for a method"):
    Pacer(*tiny("llama"), Method(), SECONDS)
  with pytest.raises(ValueError, match="is none of"):
    Method(make_selector("full", BUDGET), 2, draft_lengths=LENGTHS)
  with pytest.raises(ValueError, match="do not ascend from 0"):
    Method(make_selector("full", BUDGET), 2, draft_lengths=(1, 2))
