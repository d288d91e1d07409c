"""Processes that are killed, stopped, or run out of disk, and go on to the bit."""

import contextlib
import json
import os
import pathlib
import shutil
import subprocess
import sys
import time

import pytest

ROOT = pathlib.Path(__file__).parents[2]


@pytest.fixture(scope="module")
def compiled(tmp_path_factory):
  """Programs that one process has compiled are there for the next."""
  own = {
    "JAX_COMPILATION_CACHE_DIR": str(tmp_path_factory.mktemp("compiled")),
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
  }
  return own | dict(os.environ)


def test_killed_and_stopped_runs_go_on_to_the_bit(compiled):
  ends = "KILL,TERM,KILL,INT+TERM,KILL"
  words = [sys.executable, ROOT / "tests/experiments/kills.py", f"--ends={ends}", "--seed=3"]
  done = subprocess.run(words, capture_output=True, text=True, env=compiled, timeout=400)
  assert done.returncode == 0, done.stderr[-3000:]
  said = json.loads(done.stdout.splitlines()[-1])
  assert said["runs"] == 1 and {"TERM", "INT+TERM"} <= said["ended"].keys()


@pytest.fixture
def small_disk(tmp_path):
  folder = tmp_path / "disk"
  folder.mkdir()
  mounted = shutil.which("mount") and subprocess.run(
    ["mount", "-t", "tmpfs", "-o", "size=8m", "none", str(folder)], capture_output=True
  )
  if not mounted or mounted.returncode:
    pytest.skip("no tmpfs can be mounted here: not the machine's administrator")
  yield folder
  subprocess.run(["umount", "-l", str(folder)], check=True)


def test_a_full_disk_ends_a_run_in_one_sentence_and_it_goes_on(small_disk, tmp_path, compiled):
  flags = ["--model=bytes-tiny", "--micro_batches=2", "--micro_batch_size=1"]
  flags += ["--sequence_length=32", "--commit_every=4", "--evaluation_batches=0"]
  flags += ["--host_memory_budget=300KiB", "--iterations=400", f"--workdir={tmp_path / 'work'}"]
  flags += [f"--store={small_disk / 'store'}"]

  def train(*more):
    words = [sys.executable, "-m", "experiments.train", *flags, *more]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen(words, cwd=ROOT, env=compiled, text=True, **pipes)

  running, commits = train(), small_disk / "store/commits"
  while not list(commits.glob("*.json")):
    assert running.poll() is None, running.communicate()
    time.sleep(0.05)
  ballast = small_disk / "ballast"
  start = time.monotonic()
  with contextlib.suppress(OSError), ballast.open("wb", buffering=0) as file:
    while running.poll() is None:  # what an old commit's file leaves is taken too
      try:
        file.write(bytes(4096))
      except OSError:
        time.sleep(0.001)
      assert time.monotonic() - start < 60
  _, said = running.communicate()
  assert running.returncode == 1 and "No space left on device" in said, said
  sentence = said.splitlines()[-1]
  assert "Traceback" not in said and "The same command goes on after iteration" in sentence
  ballast.unlink()
  last = int(max(commits.glob("*.json")).stem)
  other = train("--learning_rate=1e-3")
  assert "holds a run with --learning_rate=0.003" in other.communicate()[1]
  assert other.returncode == 2
  again = train()
  while not commits.exists() or int(max(commits.glob("*.json")).stem) <= last:
    assert again.poll() is None, again.communicate()
    time.sleep(0.05)
  again.terminate()
  assert "Goes on after iteration" in again.communicate()[0] and again.returncode == 143
