"""Trains a small model in memory, with one compiled program an iteration.

    python -m experiments.pretrain --flagfile=experiments/flags/retrieval/short/1-copying.flags \
        --workdir=runs/copying

For thousands of small steps, where what `experiments.train` spends on each step's order and
transfers would be most of the time. Training goes in stages: each continues with the parameters of
--initial_checkpoint (its optimizer starts anew), usually on longer sequences.

Writes flags.txt, metrics.jsonl, summary.json, and the trained model under checkpoint/.
"""

import dataclasses
import functools
import math
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl import flags
from tqdm import tqdm

from experiments import data, program
from experiments.mixture import Mixture
from experiments.run_log import RunLog, check_workdir
from experiments.whole_loss import whole_loss
from models import initialization
from models.config import PRESETS
from models.transformer import Parameters, Transformer
from models.weights import checkpoint
from offload.feed import Batch
from offload.optimizers import warmup_cosine

FLAGS = flags.FLAGS
_positive = functools.partial(flags.DEFINE_integer, lower_bound=1)

flags.DEFINE_enum("model", "bytes-retrieval", list(PRESETS), "Shape of a model that starts anew.")
flags.DEFINE_enum("initialization", "random", ["random", "copying"], "Of a model that starts anew.")
flags.DEFINE_string("initial_checkpoint", None, "Folder of a model to continue with.")
flags.DEFINE_string("data", "stdlib", "Text to train on: stdlib, a folder, or a file.")
flags.DEFINE_string("mixture", "text", "Kinds of sequences and their shares: text:0.7,edits:0.3.")
_positive("micro_batch_size", 8, "Sequences of an iteration.")
_positive("sequence_length", 512, "Tokens of a sequence.")
flags.DEFINE_integer(
  "position_span", 0, "Spread the positions of each sequence over so many; 0: consecutive.", 0
)
_positive("iterations", 1000, "Optimizer steps.")
flags.DEFINE_float("stop_below", 0.0, "Stop when the last 100 iterations' bits are below.", 0.0)
flags.DEFINE_float("learning_rate", 2e-3, "Peak learning rate.", lower_bound=0.0)
flags.DEFINE_integer("warmup", 200, "Iterations of linear warm-up.", lower_bound=0)
flags.DEFINE_float("weight_decay", 0.01, "Decoupled weight decay of matrices.", lower_bound=0.0)

_WINDOW = 100  # iterations that the printed bits are a mean of


@dataclasses.dataclass(frozen=True)
class Plan:
  """A checked run: nothing has been written or compiled for it."""

  model: Transformer
  mixture: Mixture
  corpus: data.Corpus
  workdir: pathlib.Path

  def batch(self, iteration: int) -> Batch:
    """Of an iteration."""
    size, length = FLAGS.micro_batch_size, FLAGS.sequence_length
    where = {"seed": FLAGS.seed, "iteration": iteration, "micro_batch": 0}
    where |= {"size": size, "sequence_length": length}
    positions = data.skipping_positions(span=FLAGS.position_span or length, **where)
    return Batch(*self.mixture.batch(self.corpus.train, **where), positions)


def check() -> Plan:
  """The flags as a plan; raises ValueError or OSError with one sentence."""
  workdir = pathlib.Path(program.workdir())
  check_workdir(workdir, "pretrain")
  checkpoint.check_vacant(workdir / "checkpoint")
  mixture = Mixture.parse(FLAGS.mixture)
  if FLAGS.initial_checkpoint:
    model = checkpoint.load_model(FLAGS.initial_checkpoint)
  else:
    model = Transformer(PRESETS[FLAGS.model], jnp.dtype(jnp.float32))
  length, context = FLAGS.sequence_length, model.config.context
  if not 16 <= length <= (FLAGS.position_span or length) <= context:
    raise ValueError(
      f"--sequence_length={length} must be at least 16 and at most --position_span (where given)"
      f" and the model's context of {context}."
    )
  if FLAGS.initialization == "copying" and not FLAGS.initial_checkpoint:
    initialization.check(model)
  corpus = data.load_corpus(FLAGS.data)
  if corpus.train.dtype != np.uint8 or model.config.vocabulary != 256:
    raise ValueError("Mixtures are made of bytes: --data must be text, the model's vocabulary 256.")
  data.check_length(corpus.train, length)
  return Plan(model, mixture, corpus, workdir)


def main(plan: Plan) -> None:
  log = RunLog.start(plan.workdir, "pretrain")
  parameters = _initial(plan.model)
  rate = warmup_cosine(FLAGS.learning_rate, FLAGS.warmup, FLAGS.iterations)
  optimizer = optax.chain(
    optax.clip_by_global_norm(1.0), optax.adamw(rate, b2=0.95, weight_decay=FLAGS.weight_decay)
  )
  parameters, bits = _train(plan, optimizer, parameters, log)
  checkpoint.save(plan.workdir / "checkpoint", plan.model.config, parameters)
  recent = float(np.mean(bits[-_WINDOW:]))
  log.finish(
    {"bits": recent, "iterations": len(bits), "tokens": len(bits) * _tokens()},
    f"{recent:.3f} bits a byte over the last {min(_WINDOW, len(bits))} of {len(bits)} iterations",
  )


def _initial(model: Transformer) -> Parameters:
  if FLAGS.initial_checkpoint:
    with program.mistakes():
      return checkpoint.load(FLAGS.initial_checkpoint)[1]
  key = jax.random.key(FLAGS.seed)
  return (
    initialization.copying(model, key) if FLAGS.initialization == "copying" else model.init(key)
  )


def _train(
  plan: Plan, optimizer: optax.GradientTransformation, parameters: Parameters, log: RunLog
) -> tuple[Parameters, list[float]]:
  """The parameters at the end, and each iteration's bits per byte."""

  @functools.partial(jax.jit, donate_argnums=(0, 1))
  def step(parameters: Parameters, state: Any, batch: Batch):
    def mean_loss(parameters):
      total, weight = whole_loss(plan.model, parameters, batch)
      return total / jnp.maximum(weight, 1.0)

    loss, gradients = jax.value_and_grad(mean_loss)(parameters)
    updates, state = optimizer.update(gradients, state, parameters)
    return optax.apply_updates(parameters, updates), state, loss

  state, bits = optimizer.init(parameters), []
  with tqdm(total=FLAGS.iterations, unit="iteration", disable=None) as bar:
    for iteration in range(FLAGS.iterations):
      parameters, state, loss = step(parameters, state, plan.batch(iteration))
      bits.append(float(loss) / math.log(2))
      log.metric(iteration=iteration, bits=bits[-1], tokens=_tokens())
      recent = float(np.mean(bits[-_WINDOW:]))
      bar.set_postfix_str(f"{recent:.3f} bits", refresh=False)
      bar.update()
      if bar.disable and iteration % _WINDOW == _WINDOW - 1:  # no terminal: lines
        print(f"iteration {iteration + 1} of {FLAGS.iterations}: {recent:.3f} bits", flush=True)
      if len(bits) >= _WINDOW and recent < FLAGS.stop_below:
        break
  return parameters, bits


def _tokens() -> int:
  """Tokens of an iteration."""
  return FLAGS.micro_batch_size * FLAGS.sequence_length


if __name__ == "__main__":
  program.run(main, check)
