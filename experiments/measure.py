"""Measures this machine for a plan: compiles a unit and times each of a run's steps."""

import dataclasses
import pathlib
import shutil
import tempfile
from typing import Any, NoReturn

import jax
from absl import flags

from experiments import program, training_flags
from models.config import ModelConfig
from models.transformer import Transformer
from offload import optimizers
from offload.layout import Layout
from offload.probe import disk_bytes
from offload.programs import Programs, Shape
from offload.sizes import sizes_of
from offload.store import Store
from offload.streamer import Settings, Streamer
from offload.update import Updater
from schedules.placement import smallest
from schedules.simulate import Profile
from schedules.steps import Tier, Work
from schedules.vertical import vertical

FLAGS = flags.FLAGS
_UNITS = 2  # of the model in hand: all units are alike, and so are their programs


def measure(config: ModelConfig, shape: Shape, dtype: Any) -> tuple[Profile, int]:
  """A profile, and the bytes of device memory that the programs take beside the pools.

  A backward pass takes what one of --micro_batches does on average: the first begins a sum of
  gradients, to which the others add.

  The SSD is that of --store, or of the work folder.

  Raises:
    Mistake: the folder's disk has no room for what is written, or cannot be written to.
  """
  model = Transformer(dataclasses.replace(config, layers=min(_UNITS, config.layers)), dtype)
  layout = Layout.of(jax.eval_shape(model.init_unit, jax.random.key(0)))
  optimizer = optimizers.make(FLAGS.optimizer, 1e-3, FLAGS.weight_decay)
  work = Work(model.units, 1, layout.parts)
  updater = Updater(optimizer, model.dtype, layout.lengths)
  sizes = sizes_of(model, layout, shape, len(updater.names))
  pools = smallest(sizes, work, dtype == jax.numpy.float32, depth=1)
  programs = Programs(model, layout, shape)
  settings = Settings(vertical, work, pools, optimizer, transport=FLAGS.transport)
  there = program.nearest(training_flags.store())
  with program.mistakes(), tempfile.TemporaryDirectory(prefix="probe-", dir=there) as folder:
    check_room(there, pools.peak_bytes(work)[Tier.SSD] + disk_bytes(sizes))
    store = Store(pathlib.Path(folder) / "store", {"format": 1}, direct_io=FLAGS.direct_io)
    streamer = Streamer(model, layout, programs, settings, _no_batch, store)
    profile = streamer.probe(FLAGS.micro_batches)
    streamer.release()
  return profile, programs.reserved_bytes


def check_room(folder: pathlib.Path, needed: int) -> None:
  """Raises ValueError where the folder's disk has fewer bytes free."""
  free = shutil.disk_usage(folder).free
  if free < needed:
    raise ValueError(
      f"{folder} has {free} bytes free and measuring takes {needed}: free some, or name a folder on"
      " a larger disk with --store."
    )


def _no_batch(iteration: int, micro_batch: int) -> NoReturn:
  raise AssertionError("Nothing is trained.")
