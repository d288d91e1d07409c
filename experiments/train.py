"""Trains a language model whose parameters and optimizer states may live on SSD.

    python -m experiments.train --model=bytes-3m --schedule=vertical --iterations=100 \
        --host_memory_budget=24MiB --workdir=runs/first

Writes flags.txt, metrics.jsonl (one line an iteration), timeline.json and simulated_timeline.json
(for Perfetto), timeline.png (both of them), summary.json, and the trained model under checkpoint/.
"""

import dataclasses
import functools
import math
import pathlib
import shutil
import sys
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from tqdm import tqdm

from experiments import data, machine, program, train_report
from experiments.run_log import SUMMARY_FILE, RunLog, check_workdir, first_lines, read_metrics
from experiments.stopping import Stop, failures
from models.config import PRESETS
from models.transformer import Transformer
from models.weights import checkpoint
from offload import manifest, optimizers, snapshot
from offload.block_files import sync_folders, sync_tree
from offload.budget import budgets
from offload.buffers import recycle_freed
from offload.checksums import Corrupt
from offload.feed import Batch
from offload.layout import Layout
from offload.passes import NonFiniteGradientError
from offload.programs import Programs, Shape
from offload.result import Iteration, Result
from offload.sizes import sizes_of
from offload.snapshot import Commit
from offload.state import environment
from offload.store import Store
from offload.streamer import Settings, Streamer
from offload.transport import TRANSPORTS
from offload.update import Updater
from offload.verdict import UNSCALED, LossScale
from schedules import registry
from schedules.check import check_schedule
from schedules.placement import Budgets, place
from schedules.pools import Pools, Sizes
from schedules.replay import check_derived
from schedules.steps import Tier, Work
from schedules.whole_step import with_whole_step

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
flags.DEFINE_bool("dry_run", False, "Print steps, bytes and peaks of the run, and touch nothing.")


_SECONDS_BETWEEN_LINES = 10
_CONFIGURATION = (  # what decides the trained bits: a run goes on only with the same
  *("model", "data", "seed", "schedule", "micro_batches", "micro_batch_size", "sequence_length"),
  *("position_span", "iterations", "optimizer", "learning_rate", "warmup", "weight_decay"),
  *("clip_norm", "parameter_dtype", "loss_scale", "loss_scale_interval"),
)


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
    back = len(self.commits) > 1
    last = f"remove {self.commits[-1].file} in it to go back to the commit before, " * back
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

  `owner` is the program that the work folder is to belong to.
  """
  config = PRESETS[FLAGS.model]
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
  model = Transformer(config, jnp.dtype(FLAGS.parameter_dtype))
  schedule = registry.find(FLAGS.schedule)
  unit = jax.eval_shape(model.init_unit, jax.random.key(0))
  layout = Layout.of(unit, FLAGS.delayed_fraction)
  work = Work(model.units, FLAGS.micro_batches, layout.parts)
  check_schedule(schedule, work)
  work = with_whole_step(schedule, work)
  if not math.isfinite(FLAGS.learning_rate + FLAGS.weight_decay):
    raise ValueError("--learning_rate and --weight_decay must be finite numbers.")
  workdir, store, commits = _folders(owner)
  corpus = data.load_corpus(FLAGS.data)
  for part in (corpus.train, corpus.heldout):
    data.check_length(part, FLAGS.sequence_length)
  if corpus.vocabulary > config.vocabulary:
    raise ValueError(
      f"--data={FLAGS.data} has tokens up to {corpus.vocabulary - 1}, beyond the vocabulary of "
      f"{config.vocabulary} that --model={FLAGS.model} has."
    )
  optimizer = _optimizer()
  shape = Shape(FLAGS.micro_batch_size, FLAGS.sequence_length)
  sizes = sizes_of(model, layout, shape, len(Updater(optimizer, model.dtype).names))
  limits = budgets(FLAGS.host_memory_budget, FLAGS.device_memory_budget)
  pools = place(schedule, work, sizes, limits, model.dtype == jnp.float32)
  check_derived(schedule, work, pools)
  if not FLAGS.dry_run:
    _check_disk(store, pools, work)
  settings = Settings(
    *(schedule, work, pools, optimizer, FLAGS.seed),
    *(FLAGS.transport, FLAGS.overlap, FLAGS.verify_reads, FLAGS.keep),
    *(FLAGS.clip_norm, _loss_scale()),
  )
  return Plan(model, layout, sizes, shape, limits, settings, corpus, workdir, store, commits)


def main(plan: Plan) -> None:
  if FLAGS.dry_run:
    print(train_report.describe(plan.settings, FLAGS.iterations))
    return
  programs = Programs(plan.model, plan.layout, plan.shape)
  plan = _beside(programs, plan)
  print(train_report.describe(plan.settings, FLAGS.iterations), flush=True)
  bigram_bits = data.bigram_bits(plan.corpus)
  log = RunLog.start(plan.workdir, "train", kept=plan.done)
  with program.mistakes():
    store = Store(plan.store, _configuration(), direct_io=FLAGS.direct_io)
  run = _Run(plan, programs, log, store)
  with failures(plan.damage):
    run.start()
  with failures(run.advice):
    profile = run.streamer.probe()
    cpu_seconds, moved = time.process_time(), machine.block_io()
    result = run.train()
    cpu_seconds = time.process_time() - cpu_seconds
    moved = {link: count - moved[link] for link, count in machine.block_io().items()}
    bits = _heldout_bits(plan, run.streamer)
    if FLAGS.save_model:
      _save(plan, run.streamer)
    peaks = run.streamer.peak_bytes | {"device": programs.reserved_bytes}
    summary = train_report.summary(plan.settings, profile, result, peaks, cpu_seconds, _tokens())
    lines = read_metrics(plan.workdir)
    summary |= {"losses": [line["loss"] for line in lines]}
    summary |= {"skipped_steps": sum(line["skipped"] for line in lines)}
    summary |= {"resumed_at": plan.done, "commits": run.commits, "block_io": moved}
    summary["heldout_bits_per_byte"] = bits
    summary["bigram_bits_per_byte"] = bigram_bits
    if result.losses:  # a run killed at its very end has nothing left to train
      train_report.write_timelines(plan.workdir, plan.settings, profile, result)
      print(train_report.queues_table(summary))
    log.finish(
      summary,
      f"loss {summary['losses'][-1]:.4f} after {FLAGS.iterations} iterations, "
      f"{summary['tokens_per_second']:,.0f} tokens/s",
    )
    (run.streamer.release if FLAGS.keep_store else run.streamer.remove)()


class _Run:
  """Trains in stretches that end in commits."""

  def __init__(self, plan: Plan, programs: Programs, log: RunLog, store: Store):
    self._plan, self._programs, self._log, self._store = plan, programs, log, store
    self._stop, self._last = Stop(), plan.done
    self.commits = {"bytes": 0, "predicted_bytes": 0, "seconds": []}
    if FLAGS.commit_every:
      pools, work = plan.settings.pools, plan.settings.work
      self.commits["predicted_disk_bytes"] = pools.disk_bytes(work, FLAGS.keep)
    self.streamer: Streamer

  def start(self) -> None:
    plan = self._plan
    self.streamer = Streamer(
      *(plan.model, plan.layout, self._programs, plan.settings),
      *(plan.batch, self._store),
    )
    if plan.done:
      print(f"Goes on after iteration {plan.done}, from the commit in {plan.store}.", flush=True)
      for name, now in environment().items():
        then = plan.commits[-1].environment.get(name)
        if now != then:
          print(f"WARNING: {name} was {then} and is {now}: bits may differ.", file=sys.stderr)

  def train(self) -> Result:
    result, streamer = Result.none(), self.streamer
    with tqdm(
      total=FLAGS.iterations, initial=streamer.iteration, unit="it", desc=FLAGS.schedule,
      disable=None,
    ) as bar:  # fmt: skip
      while streamer.iteration < FLAGS.iterations and not self._stop():
        count = FLAGS.iterations - streamer.iteration
        count = min(FLAGS.commit_every or count, count)
        tell, commits = _progress(self._log, bar), FLAGS.commit_every > 0
        try:
          result = result.then(streamer.run(count, tell, stop=self._stop, commits=commits))
        except NonFiniteGradientError as error:
          raise program.Failure(f"{error} {self.advice(None)}") from error
        if commits or self._stop():
          self._commit()
    if self._stop():
      self._stop.exit(f"stopped after iteration {streamer.iteration}; {self.advice(None)}")
    return result

  def advice(self, _: object) -> str:
    """What a user can do after an end before the end."""
    if not self._last:
      return "Nothing is committed: the same command begins anew."
    return f"The same command goes on after iteration {self._last}, the last that is committed."

  def _commit(self) -> None:
    self._log.sync()
    start = time.perf_counter()
    self.commits["predicted_bytes"] += self.streamer.commit_bytes
    self.commits["bytes"] += self.streamer.commit()
    self.commits["seconds"].append(time.perf_counter() - start)
    self._last = self.streamer.iteration


def _tokens() -> int:
  """Tokens of an iteration."""
  return FLAGS.micro_batches * FLAGS.micro_batch_size * FLAGS.sequence_length


def _configuration() -> dict[str, Any]:
  return {name: FLAGS[name].value for name in _CONFIGURATION}


def _folders(owner: str) -> tuple[pathlib.Path, pathlib.Path, list[Commit]]:
  """The work folder and the store's, and the commits that it holds; a dry run leaves both alone,
  so they may be anything."""
  workdir = pathlib.Path(program.workdir())
  store = pathlib.Path(FLAGS.store or workdir / "store")
  if FLAGS.dry_run:
    return workdir, store, []
  if workdir.absolute().is_relative_to(store.absolute()):
    raise ValueError(f"--store={store} holds --workdir={workdir}: name a folder of its own.")
  check_workdir(workdir, owner)
  advice = f"Nothing was trained on it: restore the file, or remove {store} to begin anew."
  with failures(lambda error: advice):
    found = manifest.check(store, _configuration())
    commits = snapshot.all_of(store) if found else []
  done = commits[-1].iteration if commits else 0
  finished = done == FLAGS.iterations and (workdir / SUMMARY_FILE).exists()
  if done < FLAGS.iterations or (finished and FLAGS.keep_store):
    checkpoint.check_vacant(workdir / "checkpoint")  # but one killed at its very end has left it
  first_lines(workdir, done)
  return workdir, store, commits


def _check_disk(store: pathlib.Path, pools: Pools, work: Work) -> None:
  needed = pools.peak_bytes(work)[Tier.SSD]
  if FLAGS.commit_every:
    needed = pools.disk_bytes(work, FLAGS.keep)
  there = next(folder for folder in (store, *store.absolute().parents) if folder.is_dir())
  held = sum(path.stat().st_size for path in store.rglob("*") if path.is_file())
  free = shutil.disk_usage(there).free + held
  if needed > free:
    raise ValueError(
      f"--store={store} has {free} bytes free, and the run may take {needed}: free some, name a "
      "folder on a larger disk, raise --host_memory_budget, or set --commit_every=0."
    )


def _beside(programs: Programs, plan: Plan) -> Plan:
  """The plan, placed anew with room on the device for what the compiled programs need: their own
  memory, and the first unit's input and its gradient, which no pool holds."""
  settings = plan.settings
  with program.mistakes():
    pools = place(
      *(settings.schedule, settings.work, plan.sizes, plan.limits),
      *(settings.pools.master_is_parameter, programs.reserved_bytes),
    )
    check_derived(settings.schedule, settings.work, pools)
    _check_disk(plan.store, pools, settings.work)
  return dataclasses.replace(plan, settings=dataclasses.replace(settings, pools=pools))


def _optimizer() -> Any:
  rate = optimizers.warmup_cosine(FLAGS.learning_rate, FLAGS.warmup, FLAGS.iterations)
  return optimizers.make(FLAGS.optimizer, rate, FLAGS.weight_decay)


def _loss_scale() -> LossScale:
  if FLAGS.parameter_dtype == "float16":
    return LossScale(FLAGS.loss_scale, FLAGS.loss_scale_interval)
  for name in ("loss_scale", "loss_scale_interval"):
    if FLAGS[name].value != FLAGS[name].default:
      raise ValueError(f"--{name} is for --parameter_dtype=float16: leave it out.")
  return UNSCALED


def _progress(log: RunLog, bar: tqdm) -> Callable[[Iteration], None]:
  told = time.monotonic()

  def tell(known: Iteration) -> None:
    nonlocal told
    iteration, loss, norm, skipped, loss_scale = known
    values = {"loss": loss, "bits": loss / math.log(2), "tokens": _tokens()}
    values |= {"gradient_norm": norm, "skipped": skipped}
    if FLAGS.parameter_dtype == "float16":
      values["loss_scale"] = loss_scale
    log.metric(iteration=iteration, **values)
    bar.update()
    if bar.disable and time.monotonic() - told > _SECONDS_BETWEEN_LINES:  # no terminal: lines
      told = time.monotonic()
      print(f"iteration {iteration + 1} of {FLAGS.iterations}: loss {loss:.3f}", flush=True)
    rate = bar.format_dict["rate"] or 0.0
    bar.set_postfix_str(f"loss {loss:.3f}, {rate * _tokens():,.0f} tokens/s", refresh=False)

  return tell


def _heldout_bits(plan: Plan, streamer: Streamer) -> float | None:
  """Bits per token of held-out text, on batches that do not depend on the training's length."""
  count = FLAGS.evaluation_batches
  if not count:
    return None
  return streamer.evaluate(map(plan.heldout_batch, range(count))) / math.log(2)


def _save(plan: Plan, streamer: Streamer) -> None:
  """Saves the trained model beside its place and renames it, so that no half of it is taken for
  the whole; it is on the disk before the store may go."""
  folder = plan.workdir / "checkpoint"
  if folder.exists():
    return
  beside = plan.workdir / "checkpoint.partial"
  shutil.rmtree(beside, ignore_errors=True)
  units = tuple(streamer.unit_parameters(u) for u in range(plan.model.units))
  parameters = {"resident": streamer.resident_parameters, "units": units}
  try:
    checkpoint.save(beside, plan.model.config, parameters)
  except (ValueError, RuntimeError) as error:  # Orbax says so what the disk did
    raise OSError(f"{beside} could not be written: {error}") from error
  sync_tree(beside)
  beside.rename(folder)
  sync_folders(plan.workdir, plan.workdir)


if __name__ == "__main__":
  recycle_freed()
  program.run(main, check)
