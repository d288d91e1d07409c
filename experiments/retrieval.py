"""Tests whether a model retrieves: does it copy a random name that it read many bytes ago?

    python -m experiments.retrieval --checkpoint=experiments/checkpoints/retrieval

A name of 32 random letters, digits and underscores stands in held-out text; `distance` bytes of
text later it begins again. The first 8 bytes are the cue; measured are the bits per byte of the
other 24 (a random byte of that alphabet costs 5.2), and how often the model, decoding greedily,
says all 24 right. Copies at distances beyond those trained on show whether positions hold up.

Writes flags.txt and summary.json, with one row a distance, and prints the table.
"""

import dataclasses
import functools
import math
import pathlib
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags

from experiments import data, program
from experiments.mixture import NAME_SYMBOLS
from experiments.run_log import RunLog, check_workdir
from models.decoding.prefill import CHUNK
from models.transformer import Parameters, Transformer
from models.weights import checkpoint

FLAGS = flags.FLAGS

flags.DEFINE_string("checkpoint", None, "Folder of the model's checkpoint.")
flags.DEFINE_string("data", "stdlib", "Text around the names: its held-out part is used.")
flags.DEFINE_list("distances", "100,200,500,1000,2000,4000,8000", "Bytes from copy to copy.")
flags.DEFINE_integer("repeats", 8, "Names for each distance.", lower_bound=1)

NAME, CUE = 32, 8  # bytes
_BEFORE = 64  # bytes of text ahead of the name


class Row(NamedTuple):
  """What one distance gave, over all its names."""

  distance: int
  bits: float  # per byte behind the cue
  exact: float  # share of names said right to the end


@dataclasses.dataclass(frozen=True)
class Plan:
  model: Transformer
  corpus: data.Corpus
  distances: list[int]
  workdir: pathlib.Path


def check() -> Plan:
  """The flags as a plan; raises ValueError or OSError with one sentence."""
  if not FLAGS.checkpoint:
    raise ValueError("Name the model's folder with --checkpoint.")
  workdir = check_workdir(program.workdir(), "retrieval")
  model = checkpoint.load_model(FLAGS.checkpoint)
  corpus = data.load_corpus(FLAGS.data)
  if corpus.train.dtype != np.uint8 or model.config.vocabulary != 256:
    raise ValueError("Names are bytes: --data must be text, and the model's vocabulary 256.")
  longest = min(model.config.context, len(corpus.heldout)) - 2 * NAME - _BEFORE
  try:
    distances = [int(distance) for distance in FLAGS.distances]
  except ValueError:
    distances = []
  if not distances or not NAME <= min(distances) <= max(distances) <= longest:
    raise ValueError(f"--distances must be whole numbers from {NAME} to {longest}, with commas.")
  return Plan(model, corpus, distances, workdir)


def main(plan: Plan) -> None:
  with program.mistakes():
    _, parameters = checkpoint.load(FLAGS.checkpoint)
  log = RunLog.start(plan.workdir, "retrieval")
  print("distance  bits per byte  exact", flush=True)
  rows = []
  for distance in plan.distances:
    texts = [text(plan.corpus, distance, FLAGS.seed, i) for i in range(FLAGS.repeats)]
    rows.append(measure(plan.model, parameters, distance, texts))
    print(f"{distance:8,}  {rows[-1].bits:13.3f}  {rows[-1].exact:5.0%}", flush=True)
  worst = max(rows, key=lambda row: row.bits)
  log.finish(
    {"checkpoint": FLAGS.checkpoint, "rows": [row._asdict() for row in rows]},
    f"at most {worst.bits:.3f} bits per copied byte, at {worst.distance:,} bytes",
  )


def text(corpus: data.Corpus, distance: int, seed: int, number: int) -> np.ndarray:
  """Held-out text that ends with a name whose first copy began `distance` bytes before, u8."""
  rng = np.random.default_rng([seed, distance, number])
  length = _BEFORE + distance - NAME
  start = int(rng.integers(0, len(corpus.heldout) - length, endpoint=True))
  filler = corpus.heldout[start : start + length]
  name = rng.choice(NAME_SYMBOLS, NAME)
  return np.concatenate([filler[:_BEFORE], name, filler[_BEFORE:], name])


def measure(
  model: Transformer, parameters: Parameters, distance: int, texts: list[np.ndarray]
) -> Row:
  """One distance's row; the texts are read one at a time."""
  bits, exact = [], []
  for tokens in texts:
    log_p = _log_probabilities(model, parameters, tokens)
    wanted = tokens[-NAME:].astype(np.int32)[CUE:]
    said = log_p[CUE:]
    bits.append(-said[np.arange(NAME - CUE), wanted].mean() / math.log(2))
    exact.append((said.argmax(-1) == wanted).all())
  return Row(distance, float(np.mean(bits)), float(np.mean(exact)))


def _log_probabilities(model: Transformer, parameters: Parameters, tokens: np.ndarray) -> Any:
  """Of every byte at the last NAME places, f32[NAME, 256]; one compilation per CHUNK of length."""
  padding = -len(tokens) % CHUNK  # behind the text, where causal rows do not see it
  padded = np.pad(tokens, (0, padding)).astype(np.int32)[None]
  return np.asarray(_last(model, parameters, padded, len(tokens) - NAME - 1))


@functools.partial(jax.jit, static_argnames="model")
def _last(model: Transformer, parameters: Parameters, tokens: jax.Array, first: Any) -> jax.Array:
  context = model.context(jnp.arange(tokens.shape[1], dtype=jnp.int32)[None], None)
  x = model.embed(parameters["resident"], tokens, context)
  for unit in parameters["units"]:
    x = model.block(unit, x, context)
  rows = jax.lax.dynamic_slice_in_dim(x, first, NAME, axis=1)
  return jax.nn.log_softmax(model.logits(parameters["resident"], rows)[0])


if __name__ == "__main__":
  program.run(main, check)
