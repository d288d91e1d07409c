"""Held-out prompts: their lengths, what follows them, and where an edit's original stands."""

import difflib

import numpy as np
import pytest

from experiments import data, prompts


@pytest.fixture(scope="module")
def corpus():
  return data.load_corpus("stdlib")


@pytest.mark.parametrize("kind", prompts.KINDS)
@pytest.mark.parametrize("length", [2048, 8192])
def test_prompts_are_held_out_text_of_the_length_asked_for(corpus, kind, length):
  made = prompts.make(corpus, kind, length, 3, 256, seed=0)
  assert made == prompts.make(corpus, kind, length, 3, 256, seed=0)
  assert len({prompt.prompt for prompt in made}) == 3
  heldout = corpus.heldout.tobytes()
  for prompt in made:
    assert (len(prompt.prompt), len(prompt.answer)) == (length, 256)
    assert (prompt.prompt[:300] in heldout.decode("latin-1")) and prompt.prompt.isascii()


def test_a_continuation_goes_on_as_the_text_does(corpus):
  prompt = prompts.make(corpus, "continuation", 2048, 1, 100, seed=3)[0]
  assert (prompt.prompt + prompt.answer).encode() in corpus.heldout.tobytes()


def test_an_edit_s_answer_repeats_what_stands_at_its_distance(corpus):
  for prompt in prompts.make(corpus, "editing", 4096, 5, 256, seed=1):
    assert prompt.distance is not None and prompt.distance > 3500
    original = prompt.prompt[4096 - prompt.distance :][: 256 + 128]
    matcher = difflib.SequenceMatcher(None, original, prompt.answer, autojunk=False)
    assert sum(block.size for block in matcher.get_matching_blocks()) > 0.5 * 256


def test_a_recall_s_answer_is_the_rest_of_a_name_that_stands_once(corpus):
  for prompt in prompts.make(corpus, "recall", 4096, 5, 24, seed=1):
    assert prompt.distance is not None
    cue = prompt.prompt[-8:]
    assert prompt.prompt[4096 - 8 - prompt.distance :][:32] == cue + prompt.answer
    assert prompt.prompt.count(cue) == 2 and prompt.answer not in prompt.prompt[-1000:]


def test_what_cannot_be_made_is_one_sentence(corpus):
  with pytest.raises(ValueError, match="too short for a passage"):
    prompts.make(corpus, "editing", 600, 1, 256, seed=0)
  with pytest.raises(ValueError, match="must be at most 1492 of a name"):
    prompts.make(corpus, "recall", 4096, 1, 1500, seed=0)
  with pytest.raises(ValueError, match="give at least 1508"):
    prompts.make(corpus, "recall", 1500, 1, 24, seed=0)
  foreign = data.Corpus("x", np.zeros(9, np.uint8), np.full(5000, 200, np.uint8), 256, ())
  with pytest.raises(ValueError, match="no 1,100 bytes of ASCII"):
    prompts.make(foreign, "continuation", 1000, 1, 100, seed=0)
