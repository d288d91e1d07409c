"""Trains a language model whose parameters and optimizer states may live on SSD.

    python -m experiments.train --model=bytes-3m --schedule=vertical --iterations=100 \
        --host_memory_budget=24MiB --workdir=runs/first

Writes flags.txt, metrics.jsonl (one line an iteration), timeline.json and simulated_timeline.json
(for Perfetto), timeline.png (both of them), summary.json, and the trained model under checkpoint/.
"""

import math
import shutil
import time
from typing import Any

from absl import flags

from experiments import data, machine, program, train_report, training_flags
from experiments.run_log import RunLog, read_metrics
from experiments.stopping import failures
from experiments.train_check import Plan, check, check_unchanged, place_beside
from experiments.train_run import Run
from models.weights import checkpoint
from offload.buffers import give_back, recycle_freed
from offload.durable import sync_folders, sync_tree
from offload.programs import Programs
from offload.store import Store
from offload.streamer import Streamer

FLAGS = flags.FLAGS
flags.adopt_module_key_flags(training_flags)


def main(plan: Plan) -> None:
  programs = Programs(plan.model, plan.layout, plan.shape)
  plan = place_beside(programs, plan)
  print(train_report.describe(plan.settings, FLAGS.iterations), flush=True)
  if FLAGS.dry_run:
    return
  log = RunLog.claim(plan.workdir, "train")
  with program.mistakes():
    check_unchanged(plan)  # its store, if in the work folder, is nobody else's now
    configuration = training_flags.configuration(plan.corpus)
    store = Store(plan.store, configuration, direct_io=FLAGS.direct_io)
    check_unchanged(plan)  # nor is one elsewhere
  log.begin(kept=plan.done)
  run = Run(plan, programs, log, store)
  with failures(plan.damage):
    run.start()
  with failures(run.advice):
    summary = _train(plan, run, programs.reserved_bytes)
    log.finish(
      summary,
      f"loss {summary['losses'][-1]:.4f} after {FLAGS.iterations} iterations, "
      f"{summary['tokens_per_second']:,.0f} tokens/s",
    )
    (run.streamer.release if FLAGS.keep_store else run.streamer.remove)()


def _train(plan: Plan, run: Run, device_bytes: int) -> dict[str, Any]:
  """Trains, and leaves everything but the summary, which it returns."""
  profile = run.streamer.probe()
  cpu_seconds, before = time.process_time(), machine.block_io()
  result = run.train()
  cpu_seconds = time.process_time() - cpu_seconds
  block_io = {link: count - before[link] for link, count in machine.block_io().items()}
  give_back()  # what follows must not come on top of what training has freed
  bits = _heldout_bits(plan, run.streamer)
  if FLAGS.save_model:
    _save(plan, run.streamer)
  peaks = run.streamer.peak_bytes | {"device": device_bytes}
  tokens, lines = training_flags.tokens(), read_metrics(plan.workdir)
  summary = train_report.summary(plan.settings, profile, result, peaks, cpu_seconds, tokens)
  summary |= {
    "losses": [line["loss"] for line in lines],
    "skipped_steps": sum(line["skipped"] for line in lines),
    "block_io": block_io,
    "resumed_at": plan.done,
    "commits": run.commits,
    "heldout_bits_per_byte": bits,
    "bigram_bits_per_byte": data.bigram_bits(plan.corpus),
  }
  if result.losses:  # a run killed at its very end has nothing left to train
    train_report.write_timelines(plan.workdir, plan.settings, profile, result)
    print(train_report.queues_table(summary))
  return summary


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
