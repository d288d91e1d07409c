"""Finished runs as the programs leave them, made by hand, for tables and the report."""

import itertools
import json
import math
import random
import shutil

import pytest
from absl import flags

from experiments import run_log


def _side_by_side(self, name, flag, define=flags.FlagValues.__setitem__):
  """Programs define their flags for a process of their own; tests import several into one."""
  flag.allow_override = True
  define(self, name, flag)


flags.FlagValues.__setitem__ = _side_by_side


MICRO_BATCHES, UNITS = 8, 4
LINKS = ("ssd_read", "ssd_written", "host_to_device", "device_to_host")


def _event(name, queue, start, seconds):
  return {"name": name, "cat": queue, "ph": "X", "ts": start * 1e6, "dur": seconds * 1e6, "pid": 0}


def _timeline(schedule):
  """Three iterations of some forward and backward steps with transfers, and then updates."""
  events = [{"name": "thread_name", "ph": "M", "pid": 0, "tid": 0, "args": {"name": "device"}}]
  clock = 0.0
  repeats = MICRO_BATCHES if schedule == "horizontal" else 2
  passes = itertools.product(range(3), ("forward", "backward"), range(repeats), range(UNITS))
  for iteration, action, m, u in passes:
    name = f"{action}(unit {u}, micro-batch {m}) of iteration {iteration}"
    events += [
      _event(f"ssd_read parameters({u}) now of iteration 0", "ssd_read", clock, 0.02),
      _event(f"host_to_device parameters({u}) of iteration 0", "host_to_device", clock, 0.01),
      _event(name, "device", clock + 0.02, 0.03),
      _event(f"device_to_host boundary({u}, {m})", "device_to_host", clock + 0.05, 0.01),
    ]
    clock += 0.03
    if (action, m, u) == ("backward", repeats - 1, UNITS - 1):
      events += [
        _event("ssd_read states(0)", "ssd_read", clock, 0.03),
        _event("update(unit 0, now part)", "host_update", clock + 0.01, 0.03),
        _event("ssd_write states(0)", "ssd_write", clock + 0.02, 0.03),
      ]
      clock += 0.05
  return {"traceEvents": events}, clock / 3


def _train_run(folder, schedule, iterations=6):
  log = run_log.RunLog.start(folder, "train")
  generator = random.Random(0)
  losses = [
    2.2 + 3.3 * math.exp(-8 * i / iterations) + generator.gauss(0, 0.05) for i in range(iterations)
  ]
  for i, loss in enumerate(losses):
    log.metric(iteration=i, loss=loss)
  timeline, seconds = _timeline(schedule)
  (folder / "timeline.json").write_text(json.dumps(timeline))
  scale = 3.1 if schedule == "horizontal" else 1
  moved = {link: round(48e6 * scale * (i + 1)) for i, link in enumerate(LINKS)}
  log.finish(
    {
      "losses": losses,
      "seconds_per_iteration": [seconds] * iterations,
      "tokens_per_second": 512 / seconds,
      "bytes": moved,
      "predicted_bytes": moved,
      "predicted_seconds_per_iteration": seconds * 0.9,
      "bound_seconds_per_iteration": seconds * 0.8,
      "peak_bytes": {"device": 9_000_000, "host": 14_000_000, "ssd": 60_000_000},
      "busy_seconds": {},
      "heldout_bits_per_byte": 2.61,
      "bigram_bits_per_byte": 3.45,
    }
  )


def _generate_run(folder, method, rate, length):
  log = run_log.RunLog.start(folder, "generate")
  text = b"def area(self, width):\n    return self.width * width\n" * 3
  log.finish(
    {
      "completions": [list(text), list(text)],
      "tokens_per_second": rate,
      "acceptance_length": length,
      "rounds": round(len(text) / length),
      "seconds": {"prefill": 3.0, "decode": 1.2},
      "method": method,
      "predicted_speedup": 2.1 if method == "window" else 1.9,
      **({} if method == "autoregressive" else {"identical_to_autoregressive": True}),
      "near_ties": 0,
    }
  )


@pytest.fixture(scope="session")
def finished_runs(tmp_path_factory):
  """A folder as the quickstart leaves it, before its summary and report; to be read only."""
  folder = tmp_path_factory.mktemp("finished") / "quickstart"
  make_runs(folder)
  return folder


@pytest.fixture
def runs(finished_runs, tmp_path):
  """A copy of it, to change."""
  return shutil.copytree(finished_runs, tmp_path / "quickstart")


def make_runs(folder):
  """Writes the six run folders and the prompts."""
  for schedule in ("horizontal", "vertical"):
    _train_run(folder / schedule, schedule)
  _train_run(folder / "training", "vertical", iterations=300)
  for method, rate, length in (
    ("autoregressive", 210, 1),
    ("window", 340, 3.9),
    ("specattn", 310, 3.6),
  ):
    _generate_run(folder / f"decode_{method}", method, rate, length)
  (folder / "prompts").mkdir()
  for i in range(2):
    (folder / "prompts" / f"prompt{i}.txt").write_text("class Shape:\n  '''A shape.'''\n" * 300)
