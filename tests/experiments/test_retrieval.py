"""The retrieval test itself, and that the kept checkpoint passes it."""

import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import data, retrieval
from models.config import PRESETS
from models.transformer import Transformer
from models.weights import checkpoint

KEPT = pathlib.Path(__file__).parents[2] / "experiments/checkpoints/retrieval"


@pytest.fixture(scope="module")
def corpus():
  return data.load_corpus("stdlib")


def test_a_text_ends_with_a_name_that_began_its_distance_before(corpus):
  for distance in (32, 100, 3000):
    tokens = retrieval.text(corpus, distance, 0, 1)
    first = len(tokens) - retrieval.NAME - distance
    name = tokens[-retrieval.NAME :].tobytes()
    assert tokens[first:].tobytes().startswith(name) and tokens.tobytes().count(name) == 2
    assert name != retrieval.text(corpus, distance, 0, 2)[-retrieval.NAME :].tobytes()


def test_bits_are_those_of_the_bytes_behind_the_cue(corpus):
  model = Transformer(PRESETS["bytes-tiny"])
  parameters = model.init(jax.random.key(0))
  texts = [retrieval.text(corpus, 700, 0, number) for number in range(2)]
  row = retrieval.measure(model, parameters, 700, texts)
  bits = []
  for tokens in texts:  # the whole sequence by the model's own loss, one target at a time
    inputs = tokens[None, :-1].astype(np.int32)
    targets = np.full_like(inputs, -1)
    targets[0, -24:] = tokens[-24:]
    context = model.context(jnp.arange(inputs.shape[1])[None], None)
    x = model.embed(parameters["resident"], jnp.asarray(inputs), context)
    for unit in parameters["units"]:
      x = model.block(unit, x, context)
    loss, count = model.loss(parameters["resident"], x, jnp.asarray(targets), context)
    bits.append(float(loss) / float(count) / np.log(2))
  assert row.bits == pytest.approx(np.mean(bits), rel=1e-4)
  assert row.exact == 0.0


def test_the_kept_model_copies_a_random_name_over_thousands_of_bytes(corpus):
  config, parameters = checkpoint.load(KEPT)
  texts = [retrieval.text(corpus, 2500, 99, number) for number in range(4)]
  row = retrieval.measure(Transformer(config), parameters, 2500, texts)
  assert row.bits < 1.0  # a byte of such a name is worth 5.2


def test_mistakes_are_one_sentence(tmp_path):
  def answer(*flags):
    command = [sys.executable, "-m", "experiments.retrieval", f"--workdir={tmp_path / 'w'}", *flags]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    return done.stderr

  assert "Name the model's folder" in answer()
  assert "whole numbers from 32 to" in answer(f"--checkpoint={KEPT}", "--distances=10,20")
  assert not (tmp_path / "w").exists()
