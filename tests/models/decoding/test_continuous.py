"""A queue of prompts over few places: each text is what its prompt alone gives, nothing is compiled
on the way, and no place, order or neighbour changes a text."""

import logging

import jax
import pytest

from models.decoding.compare import follow
from models.decoding.continuous import ContinuousBatch
from models.decoding.generate import Generator, pad, slots_for
from models.decoding.method import Method
from models.decoding.sampling import make_sampler
from models.decoding.selectors import Budget, make_selector

WANTED = 20
BUDGET = Budget.parse("0.2", floor=8)


def served(generator, prompts, size, *, rounds=2**30, key=None, slots=1024):
  """The texts of a queue over `size` places, and all that was emitted on the way."""
  batch = ContinuousBatch(generator, size=size, slots=slots, wanted=WANTED)
  seen = list(batch.decode(prompts, jax.random.key(3) if key is None else key, rounds))
  texts = [[] for _ in prompts]
  for emission in seen:
    texts[emission.number] += emission.tokens
  return texts, seen


@pytest.mark.parametrize(
  ("name", "settings"),
  [
    ("h2o", {"refresh": 2, "prompt_rows": 4}),
    ("quest", {"dense_layers": 1, "page_size": 8}),
  ],
)
def test_a_queue_gives_what_each_prompt_alone_gives(name, settings, tiny, ragged):
  """Texts end at different rounds: by their length, and some by an end token."""
  selector = make_selector(name, BUDGET, **settings)
  prompts, model = ragged(7), tiny("llama")
  alone = Generator(*model, Method())
  plain = [alone.generate([prompt], WANTED)[0] for prompt in prompts]
  end = plain[1][6]
  expected = [text[: text.index(end) + 1] if end in text else text for text in plain]
  assert len({len(text) for text in expected}) > 1
  generator = Generator(*model, Method(selector, 3, end_token=end))
  texts, seen = served(generator, prompts, 3)
  for prompt, text, wanted in zip(prompts, texts, expected, strict=True):
    if text != wanted:
      batch = pad([prompt])
      judged, _ = follow(*model, alone.prefill(batch, 1024), batch.last, [text])
      assert judged[0].identical
  ends = {e.number: e.acceptances for e in seen if e.acceptances is not None}
  assert ends.keys() == set(range(7))
  assert all(sum(ends[number]) <= len(texts[number]) for number in ends)


@pytest.mark.parametrize("rounds", [{}, {"rounds": 1}])
@pytest.mark.parametrize("draft_lengths", [(), (0, 1, 3)])
def test_a_queue_is_served_without_compiling(tiny, ragged, caplog, draft_lengths, rounds):
  method = Method(make_selector("specattn", BUDGET), 3, draft_lengths=draft_lengths)
  generator = Generator(*tiny("llama"), method)
  batch = ContinuousBatch(generator, size=2, slots=1024, wanted=WANTED)
  assert batch.warm_up() > 0
  key = jax.random.key(0)
  with jax.log_compiles(), caplog.at_level(logging.DEBUG):
    first = sum(len(e.tokens) for e in batch.decode(ragged(6), key, **rounds))
    compiled = [record.getMessage() for record in caplog.records]
  assert first == 6 * WANTED
  assert not [message for message in compiled if "ompil" in message], compiled


def test_a_shorter_text_makes_room_while_a_longer_one_goes_on(tiny, ragged):
  """The third prompt begins before the slowest of the first two has ended."""
  model, prompts = tiny("llama"), ragged(3)
  first = Generator(*model, Method()).generate([prompts[0]], WANTED)[0]
  end = first[2]
  generator = Generator(*model, Method(end_token=end))
  _, seen = served(generator, prompts, 2, rounds=1)
  order = [e.number for e in seen]
  assert order.index(2) < max(i for i, number in enumerate(order) if number == 1)


def test_sampled_texts_depend_on_prompt_and_number_alone(tiny, ragged):
  """Under --bit_exact; the places are one then, and the queue's other prompts change nothing."""
  selector = make_selector("specattn", BUDGET, refresh=2)
  method = Method(selector, 3, sampler=make_sampler(1.0, 0.95), bit_exact=True)
  generator, prompts = Generator(*tiny("llama"), method), ragged(4)
  slots = slots_for(generator.model.config, method, 129, WANTED)
  texts, _ = served(generator, prompts, method.together(4), slots=slots)
  others = [prompts[3], prompts[2], prompts[2], prompts[3]]
  again, _ = served(generator, others, method.together(4), slots=slots)
  assert again[2:] == [texts[2], texts[3]] and again[1] != again[2]


def test_every_round_s_tokens_are_streamed(tiny, ragged):
  """Round by round: the drafts that stood, and one more token."""
  generator = Generator(*tiny("llama"), Method(make_selector("specattn", BUDGET), 3))
  prompts = ragged(2)
  whole, _ = served(generator, prompts, 1)
  texts, seen = served(generator, prompts, 1, rounds=1)
  assert texts == whole and len(seen) > len(prompts)
  for e in seen:
    now = e.tokens[e.begin :]
    assert e.begin == len(e.tokens) - len(now) <= 1
    assert now[: e.accepted] == e.drafts[: len(now)][: e.accepted]
    if e.acceptances is None:
      assert len(now) == e.accepted + 1
      assert e.accepted == 3 or e.drafts[e.accepted] != now[e.accepted]
