"""What can be said of a training run before anything is written or compiled for it."""

import dataclasses
import math
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags

from experiments import data, program, training_flags
from experiments.run_log import SUMMARY_FILE, check_workdir, first_lines
from experiments.stopping import failures
from models.config import PRESETS, ModelConfig
from models.transformer import Transformer
from models.weights import checkpoint
from offload import manifest, probe, snapshot
from offload.budget import budgets, spare_bytes
from offload.checksums import Corrupt
from offload.feed import Batch
from offload.layout import Layout
from offload.programs import Programs, Shape
from offload.sizes import sizes_of
from offload.snapshot import Commit
from offload.streamer import Settings
from offload.update import Updater
from schedules import registry
from schedules.check import check_schedule
from schedules.placement import Budgets, place
from schedules.pools import Pools, Sizes
from schedules.registry import Schedule
from schedules.replay import check_derived
from schedules.steps import Tier, Work
from schedules.whole_step import with_whole_step

FLAGS = flags.FLAGS


@dataclasses.dataclass(frozen=True)
class Plan:
  """A run that has been checked: nothing has been written or compiled for it."""

  model: Transformer
  layout: Layout
  sizes: Sizes
  shape: Shape
  limits: Budgets
  settings: Settings
  corpus: data.Corpus
  workdir: pathlib.Path
  store: pathlib.Path
  commits: list[Commit]  # that the store holds

  @property
  def done(self) -> int:
    """Iterations of the store's last commit."""
    return self.commits[-1].iteration if self.commits else 0

  def damage(self, error: Exception) -> str:
    """What a user can do where a run cannot go on from its commit."""
    if not isinstance(error, Corrupt):
      return "Once that is mended, the same command goes on."
    last = ""
    if len(self.commits) > 1:
      last = f"remove {self.store / self.commits[-1].file} to go back to the commit before, "
    return (
      f"Nothing was trained on it: restore the file, {last}or remove {self.store} to begin anew."
    )

  def batch(self, iteration: int, micro_batch: int) -> Batch:
    """Of the training text, its positions spread over --position_span."""
    where = {"seed": FLAGS.seed, "iteration": iteration, "micro_batch": micro_batch}
    where |= {"size": self.shape.sequences, "sequence_length": self.shape.tokens}
    span = FLAGS.position_span or self.shape.tokens
    positions = data.skipping_positions(span=span, **where)
    return Batch(*data.batch(self.corpus.train, **where), positions)

  def heldout_batch(self, number: int) -> Batch:
    """Of held-out text: the same for every run of this shape and seed, however long."""
    size, length = self.shape.sequences, self.shape.tokens
    where = {"seed": FLAGS.seed, "iteration": 0, "micro_batch": number}
    pair = data.batch(self.corpus.heldout, size=size, sequence_length=length, **where)
    return Batch(*pair, np.tile(np.arange(length, dtype=np.int32), (size, 1)))


def check(owner: str = "train") -> Plan:
  """Refuses mistakes in the flags, and places the run under its budgets.

  `owner` is the program whose runs the work folder may hold.
  """
  config = PRESETS[FLAGS.model]
  _check_lengths(config)
  model = Transformer(config, jnp.dtype(FLAGS.parameter_dtype))
  schedule, work, layout = _order(model)
  if not math.isfinite(FLAGS.learning_rate + FLAGS.weight_decay):
    raise ValueError("--learning_rate and --weight_decay must be finite numbers.")
  corpus = _corpus(config)
  workdir, store, commits = _folders(owner, corpus)
  optimizer = training_flags.optimizer()
  shape = Shape(FLAGS.micro_batch_size, FLAGS.sequence_length)
  updater = Updater(optimizer, model.dtype, layout.lengths)
  sizes = sizes_of(model, layout, shape, len(updater.names))
  limits = budgets(FLAGS.host_memory_budget, FLAGS.device_memory_budget)
  pools = place(schedule, work, sizes, limits, model.dtype == jnp.float32)
  check_derived(schedule, work, pools)
  if not FLAGS.dry_run:
    _check_disk(store, pools, work)
  settings = Settings(
    *(schedule, work, pools, optimizer, FLAGS.seed),
    *(FLAGS.transport, FLAGS.overlap, FLAGS.verify_reads, FLAGS.keep),
    *(FLAGS.clip_norm, training_flags.loss_scale()),
  )
  return Plan(model, layout, sizes, shape, limits, settings, corpus, workdir, store, commits)


def place_beside(programs: Programs, plan: Plan) -> Plan:
  """The plan, placed anew with room on the device for what the compiled programs need: their own
  memory, and the first unit's input and its gradient, which no pool holds."""
  settings = plan.settings
  with program.mistakes():
    pools = place(
      *(settings.schedule, settings.work, plan.sizes, plan.limits),
      *(settings.pools.master_is_parameter, programs.reserved_bytes),
    )
    check_derived(settings.schedule, settings.work, pools)
    if not FLAGS.dry_run:
      _check_disk(plan.store, pools, settings.work)
  spare = spare_bytes(plan.limits, pools, settings.work, programs.reserved_bytes)
  settings = dataclasses.replace(settings, pools=pools, spare_bytes=spare)
  return dataclasses.replace(plan, settings=settings)


def check_unchanged(plan: Plan) -> None:
  """Refuses where another run has used the folders between `check` and their locks."""
  if _folders("train", plan.corpus)[2] != plan.commits:
    raise ValueError(
      f"--store={plan.store}: another run has trained there meanwhile; the same command goes on"
      " from where that has come to."
    )


def _check_lengths(config: ModelConfig) -> None:
  if config.context < FLAGS.sequence_length:
    raise ValueError(
      f"--sequence_length={FLAGS.sequence_length} exceeds the context of {config.context} that "
      f"--model={FLAGS.model} has."
    )
  if FLAGS.position_span and not FLAGS.sequence_length <= FLAGS.position_span <= config.context:
    raise ValueError(
      f"--position_span={FLAGS.position_span} must be 0, or at least --sequence_length and at most "
      f"{config.context}, the context of --model={FLAGS.model}."
    )


def _order(model: Transformer) -> tuple[Schedule, Work, Layout]:
  schedule = registry.find(FLAGS.schedule)
  unit = jax.eval_shape(model.init_unit, jax.random.key(0))
  layout = Layout.of(unit, FLAGS.delayed_fraction)
  work = Work(model.units, FLAGS.micro_batches, layout.parts)
  check_schedule(schedule, work)
  return schedule, with_whole_step(schedule, work), layout


def _corpus(config: ModelConfig) -> data.Corpus:
  corpus = data.load_corpus(FLAGS.data)
  for part in (corpus.train, corpus.heldout):
    data.check_length(part, FLAGS.sequence_length)
  if corpus.vocabulary > config.vocabulary:
    raise ValueError(
      f"--data={FLAGS.data} has tokens up to {corpus.vocabulary - 1}, beyond the vocabulary of "
      f"{config.vocabulary} that --model={FLAGS.model} has."
    )
  return corpus


def _folders(owner: str, corpus: data.Corpus) -> tuple[pathlib.Path, pathlib.Path, list[Commit]]:
  """The work folder and the store's, and the commits that it holds; a dry run leaves both alone,
  so they may be anything."""
  workdir = pathlib.Path(program.workdir())
  store = training_flags.store()
  if FLAGS.dry_run:
    return workdir, store, []
  if workdir.absolute().is_relative_to(store.absolute()):
    raise ValueError(f"--store={store} holds --workdir={workdir}: name a folder of its own.")
  check_workdir(workdir, owner)
  with failures(lambda _: _repair(store)):
    found = manifest.check(store, training_flags.configuration(corpus))
    commits = snapshot.all_of(store) if found else []
  done = commits[-1].iteration if commits else 0
  finished = done == FLAGS.iterations and (workdir / SUMMARY_FILE).exists()
  if done < FLAGS.iterations or (finished and FLAGS.keep_store):
    checkpoint.check_vacant(workdir / "checkpoint")  # but one killed at its very end has left it
  first_lines(workdir, done)
  return workdir, store, commits


def _repair(store: pathlib.Path) -> str:
  """What a user can do where a store's files are damaged."""
  whole, damaged = snapshot.sorted_out(store)
  without = ""
  if whole and damaged:
    names = " and ".join(map(str, damaged))
    without = f"remove {names} to go on after iteration {whole[-1].iteration}, "
  return f"Nothing was trained on it: restore the file, {without}or remove {store} to begin anew."


def _check_disk(store: pathlib.Path, pools: Pools, work: Work) -> None:
  needed = pools.peak_bytes(work)[Tier.SSD] + probe.disk_bytes(pools.sizes)
  if FLAGS.commit_every:
    needed = max(needed, pools.disk_bytes(work, FLAGS.keep))
  free = program.disk_room(store)
  if needed > free:
    raise ValueError(
      f"--store={store} has {free} bytes free, and the run may take {needed}: free some, name a "
      "folder on a larger disk, raise --host_memory_budget, or set --commit_every=0."
    )
