"""Rounds of shapes with random weights: what is timed, and what is refused."""

import subprocess
import sys

import pytest

from experiments import run_log
from models.config import PRESETS

SMALL = ("--model=bytes-tiny", "--context=300", "--dtype=float32", "--depth=1", "--depth=2")
METHOD = "specattn,draft_length=3,page_size=16"


def run(*flags):
  command = [sys.executable, "-m", "experiments.round_costs", *SMALL, *flags]
  return subprocess.run(command, capture_output=True, text=True)


def test_rounds_of_a_small_shape(tmp_path):
  done = run("--memory=8MB", "--phases", f"--methods={METHOD}", f"--workdir={tmp_path / 'rounds'}")
  assert done.returncode == 0, done.stderr
  first, *lines = run_log.read_metrics(tmp_path / "rounds")
  assert first["copy_bytes_per_second"] > 0 and first["dtype"] == "float32"
  timed = {(line["method"], line["depth"]) for line in lines if "rounds" in line}
  assert timed == {(method, depth) for method in ("autoregressive", METHOD) for depth in (1, 2)}
  [phases] = [line["phases"] for line in lines if line.get("phases")]
  assert set(phases) == {"select", "gather", "draft", "verify", "score", "round"}

  # Three layers of width 32: cache and weights are small enough to count by hand.
  config = PRESETS["bytes-tiny"]
  weights = 4 * (3 * config.block_parameters + 256 * 32 + 32)  # of the head, not of the embedding
  cached = 3 * 2 * 32 * 4  # bytes of a token's keys and values
  batch = lines[0]["batch_size"]
  step = next(line["bytes"] for line in lines if line["method"] == "autoregressive")
  assert step == pytest.approx(weights + batch * 300 * cached)
  slots, scratch = 512, 256  # whole chunks; the least budget
  takes = lambda sequences: weights + sequences * (slots + scratch) * cached
  assert takes(batch) <= 0.95 * 8e6 < takes(batch + 1)


@pytest.mark.parametrize(
  ("flags", "sentence"),
  [
    (("--methods=window,draft_length=auto",), "--draft_length=auto is no fixed length"),
    (("--methods=quest",), "give dense_layers=0"),
    (("--methods=snapkv",), "select for each (refresh=1)"),
    (("--kv_budget=0.02",), "--kv_budget belongs into --methods, as in specattn,kv_budget=..."),
    (("--depth=1", "--depth=3"), "--depth must be given two different numbers"),
    (("--memory=100KB",), "do not hold bytes-tiny and 300 tokens"),
    ((), "This device does not say how much memory it has: give --memory."),
  ],
)
def test_mistakes_get_one_sentence(tmp_path, flags, sentence):
  done = run(*flags, f"--workdir={tmp_path / 'rounds'}")
  assert done.returncode == 2
  assert sentence in done.stderr and len(done.stderr.splitlines()) == 1
  assert not (tmp_path / "rounds").exists()
