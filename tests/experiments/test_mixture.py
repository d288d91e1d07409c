"""Sequences that repeat: what repeats, what has a target, and that draws have no state."""

import difflib
import itertools

import numpy as np
import pytest

from experiments import mixture
from experiments.mixture import KINDS, NO_TARGET, Mixture

TEXT = np.frombuffer(
  b"".join(
    b"def function_%d(value):\n  return value + other_%d\n" % (i, i * i) for i in range(400)
  ),
  np.uint8,
)
WHERE = {"seed": 1, "iteration": 7, "micro_batch": 2, "size": 6}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("length", [16, 64, 1000])
def test_batches_are_a_function_of_their_arguments(kind, length):
  mix = Mixture.parse(kind)
  inputs, targets = mix.batch(TEXT, sequence_length=length, **WHERE)
  again, _ = mix.batch(TEXT, sequence_length=length, **WHERE)
  other, _ = mix.batch(TEXT, sequence_length=length, **(WHERE | {"iteration": 8}))
  assert inputs.shape == targets.shape == (6, length) and inputs.dtype == np.int32
  np.testing.assert_array_equal(inputs, again)
  assert np.any(inputs != other)
  known = targets[:, :-1] != NO_TARGET
  np.testing.assert_array_equal(targets[:, :-1][known], inputs[:, 1:][known])
  assert inputs.min() >= 0 and inputs.max() < 256


def test_every_target_of_repeats_can_be_copied():
  inputs, targets = Mixture.parse("repeats").batch(TEXT, sequence_length=128, **WHERE)
  for row, wanted in zip(inputs, targets, strict=True):
    first = int((wanted != NO_TARGET).argmax())
    period = first + 1
    assert 8 <= period <= 64 and np.all(wanted[first:] != NO_TARGET)
    np.testing.assert_array_equal(wanted[first:], row[: 128 - first])


def test_names_stand_at_several_places_and_only_the_first_has_no_target():
  tokens, known = KINDS["needles"](np.random.default_rng(4), np.full(9000, 32, np.uint8), 3000)
  spans = [list(g) for k, g in itertools.groupby(range(3000), lambda i: bool(known[i])) if not k]
  assert len(spans) > 5
  text, repeated = tokens.tobytes(), 0
  for span in spans:
    name = text[span[0] : span[0] + mixture._SHORTEST]
    assert text.find(name) == span[0]
    repeated += text.count(name) > 1
  assert repeated >= len(spans) - 2  # what was cut off at the end may have lost its copies


def test_an_edited_passage_comes_again_with_names_changed_throughout():
  rng = np.random.default_rng(0)
  passage = TEXT[: 40 * 50]
  edited = mixture.edit(rng, passage)
  old, new = passage.tobytes(), edited.tobytes()
  assert old != new
  same = sum(b.size for b in difflib.SequenceMatcher(None, old, new, False).get_matching_blocks())
  assert 0.6 < same / len(old) < 1.0
  tokens, known = KINDS["edits"](np.random.default_rng(1), TEXT, 2001)
  assert len(tokens) == len(known) == 2001 and known.all()
  start = tokens[:40].tobytes()
  assert any(start[i : i + 12] in tokens[1000:].tobytes() for i in range(28))


def test_shares_are_kept():
  mix = Mixture.parse("text:3,repeats:1")
  assert mix.shares == (0.75, 0.25)
  where = WHERE | {"size": 400, "sequence_length": 32}
  _, targets = mix.batch(TEXT, **where)
  assert 0.18 < (targets == NO_TARGET).any(axis=1).mean() < 0.32


@pytest.mark.parametrize(
  "spec", ["", "poems", "text:0", "text:x", "text,text", "text:-1", "edits:nan"]
)
def test_a_wrong_mixture_is_one_sentence(spec):
  with pytest.raises(ValueError, match=r"^--mixture=") as error:
    Mixture.parse(spec)
  assert str(error.value).count("\n") == 0
