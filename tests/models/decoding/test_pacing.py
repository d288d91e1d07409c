"""Rounds of several draft lengths over one state: no token changes, whatever is chosen and when."""

import jax
import pytest

from models.decoding.continuous import ContinuousBatch
from models.decoding.draft_length import RoundSeconds
from models.decoding.generate import Generator, sequence_keys
from models.decoding.loop import start
from models.decoding.method import Method
from models.decoding.pacing import Pacer
from models.decoding.selectors import Budget, make_selector

WANTED, BUDGET = 72, Budget.parse("0.2", floor=8)
LENGTHS = (0, 1, 3)
# By which drafts pay as long as they stand: so lengths alternate, and are given up and tried again.
SECONDS = RoundSeconds((8, 200), {0: (1.0, 1.0), 1: (1.4, 1.4), 3: (2.2, 2.2)})


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


def test_a_queue_of_several_lengths_gives_each_prompt_s_own_text(tiny, ragged):
  prompts, model = ragged(5), tiny("llama")
  plain = [Generator(*model, Method()).generate([prompt], 20)[0] for prompt in prompts]
  generator = Generator(*model, Method(make_selector("specattn", BUDGET), 3, draft_lengths=LENGTHS))
  batch = ContinuousBatch(generator, size=2, slots=1024, wanted=20)
  batch.pace(SECONDS)
  texts = [[] for _ in prompts]
  for emission in batch.decode(prompts, jax.random.key(0)):
    texts[emission.number] += emission.tokens
  assert texts == plain


def test_rounds_are_timed_for_every_length(tiny):
  generator = Generator(
    *tiny("gpt"), Method(make_selector("snapkv", BUDGET), 3, draft_lengths=LENGTHS)
  )
  batch = ContinuousBatch(generator, size=2, slots=512, wanted=8)
  batch.warm_up()
  assert batch.pacer is not None and batch.pacer.seconds is not None
  assert set(batch.pacer.seconds.seconds) == set(LENGTHS)
  assert all(0 < t < 10 for both in batch.pacer.seconds.seconds.values() for t in both)


def test_costs_are_for_a_method_that_chooses(tiny):
  with pytest.raises(ValueError, match="Seconds of a round are for a method"):
    Pacer(*tiny("llama"), Method(), 8, SECONDS)
  with pytest.raises(ValueError, match="is none of"):
    Method(make_selector("full", BUDGET), 2, draft_lengths=LENGTHS)
