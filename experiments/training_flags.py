"""The flags that say what to train and how, and what they make: optimizer, loss scale."""

import functools
import pathlib
from typing import Any

from absl import flags

from experiments import program
from experiments.data import Corpus
from models.config import PRESETS
from offload import optimizers
from offload.transport import TRANSPORTS
from offload.update import Optimizer
from offload.verdict import UNSCALED, LossScale

FLAGS = flags.FLAGS
_positive = functools.partial(flags.DEFINE_integer, lower_bound=1)

flags.DEFINE_enum("model", "bytes-3m", list(PRESETS), "Shape of the model.")
flags.DEFINE_string("data", "stdlib", "Text to train on: stdlib, a folder, or a token file.")
flags.DEFINE_string(
  "schedule", "vertical", "A schedule's name, or a dotted path to one's function."
)
_positive("micro_batches", 4, "Micro-batches of an iteration.")
_positive("micro_batch_size", 2, "Sequences of a micro-batch.")
_positive("sequence_length", 512, "Tokens of a sequence.")
flags.DEFINE_integer(
  "position_span", 0, "Spread the positions of each sequence over so many; 0: consecutive.", 0
)
_positive("iterations", 100, "Optimizer steps.")
flags.DEFINE_float(
  "delayed_fraction", 0.0, "Share of each unit's step delayed into the next forward."
)
flags.DEFINE_enum("transport", "copy", list(TRANSPORTS), "How bytes cross the device's link.")
flags.DEFINE_enum("optimizer", "adamw", optimizers.OPTIMIZERS, "An elementwise optimizer.")
flags.DEFINE_float("learning_rate", 3e-3, "Peak learning rate.", lower_bound=0.0)
flags.DEFINE_integer("warmup", 20, "Iterations of linear warm-up.", lower_bound=0)
flags.DEFINE_float("weight_decay", 0.1, "Decoupled weight decay of matrices.", lower_bound=0.0)
flags.DEFINE_float(
  "clip_norm", 0.0, "Clip gradients to this global norm; 0: off. Needs --delayed_fraction=1."
)
flags.DEFINE_enum(
  "parameter_dtype",
  "float32",
  ["float32", "bfloat16", "float16"],
  "Of parameters and activations; gradients are summed and steps taken in float32, always.",
)
flags.DEFINE_float("loss_scale", 2.0**16, "Factor on the loss, at first: float16 only.")
_positive("loss_scale_interval", 2000, "Good steps after which the loss scale doubles.")
program.DEFINE_size("host_memory_budget", None, "Bytes of host memory for buffers (most of it).")
program.DEFINE_size("device_memory_budget", None, "Bytes of device memory (most of it).")
flags.DEFINE_string("store", None, "Folder on SSD for what streams (<workdir>/store).")
flags.DEFINE_bool("direct_io", False, "Read and write the store past the page cache.")
flags.DEFINE_integer(
  "commit_every", 100, "Iterations between commits, from which a killed run resumes; 0: none.", 0
)
_positive("keep", 1, "Commits that the store keeps.")
flags.DEFINE_bool("keep_store", False, "Leave the store, with its last commit, at the end.")
flags.DEFINE_bool("verify_reads", False, "Hold whatever is read from SSD against its checksum.")
flags.DEFINE_bool("overlap", True, "Run the queues at the same time; off: strictly in list order.")
flags.DEFINE_integer("evaluation_batches", 8, "Held-out micro-batches at the end.", lower_bound=0)
flags.DEFINE_bool(
  "save_model", True, "Leave the trained model under checkpoint/; it is whole in memory meanwhile."
)
flags.DEFINE_bool("dry_run", False, "Print steps, bytes and peaks of the run, and write nothing.")

_CONFIGURATION = (  # what decides the trained bits: a run goes on only with the same
  *("model", "seed", "schedule", "micro_batches", "micro_batch_size", "sequence_length"),
  *("position_span", "iterations", "optimizer", "learning_rate", "warmup", "weight_decay"),
  *("clip_norm", "parameter_dtype", "loss_scale", "loss_scale_interval"),
)


def configuration(corpus: Corpus) -> dict[str, Any]:
  """What a run must have in common with the one that it goes on from: flags, and the text."""
  return {"data": corpus.description} | {name: FLAGS[name].value for name in _CONFIGURATION}


def store() -> pathlib.Path:
  """The folder on SSD for what streams."""
  return pathlib.Path(FLAGS.store or pathlib.Path(program.workdir()) / "store")


def tokens() -> int:
  """Tokens of an iteration."""
  return FLAGS.micro_batches * FLAGS.micro_batch_size * FLAGS.sequence_length


def optimizer() -> Optimizer:
  """Warm-up from zero to --learning_rate, then a cosine to the last iteration."""
  rate = optimizers.warmup_cosine(FLAGS.learning_rate, FLAGS.warmup, FLAGS.iterations)
  return optimizers.make(FLAGS.optimizer, rate, FLAGS.weight_decay)


def loss_scale() -> LossScale:
  """Raises ValueError where its flags are given for a dtype that takes none."""
  if FLAGS.parameter_dtype == "float16":
    return LossScale(FLAGS.loss_scale, FLAGS.loss_scale_interval)
  for name in ("loss_scale", "loss_scale_interval"):
    if FLAGS[name].value != FLAGS[name].default:
      raise ValueError(f"--{name} is for --parameter_dtype=float16: leave it out.")
  return UNSCALED
