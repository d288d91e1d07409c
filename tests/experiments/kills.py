"""Kills training runs at random moments, lets each go on until it is finished, and compares.

    scripts/kill_runs --runs=50

A run is a chain of processes of `python -m experiments.train`; all but the last are ended by a
signal at a moment drawn from the seed: so many milliseconds after the n-th step of one kind (load,
forward, backward, update, a transfer, something within a commit, the end). Losses, the final
commit's arrays, the checkpoint and the metrics must equal those of one unbroken run to the bit, and
foreign files in the folders must stay as they are.
"""

import argparse
import collections
import json
import os
import pathlib
import random
import runpy
import signal
import subprocess
import sys
import tempfile
import threading
import time

ROOT = pathlib.Path(__file__).parents[2]
sys.path[:0] = [str(ROOT)]
ITERATIONS = 8
FLAGS = (
  "--model=bytes-tiny",
  *("--micro_batches=4", "--micro_batch_size=2", "--sequence_length=32"),
  *(f"--iterations={ITERATIONS}", "--commit_every=2", "--evaluation_batches=0"),
  *("--host_memory_budget=300KiB", "--device_memory_budget=1400KiB", "--delayed_fraction=0.25"),
  "--keep_store",
)
# Kinds of step after which a signal comes, and how many of them pass before it at most.
MOMENTS = {"load": 30, "forward": 20, "backward": 28, "update": 14, "transfer": 60, "commit": 40}
LATEST = 0.02  # seconds after the step


def arm(kind: str, nth: int, delay: float, signals: list[int], stamp: str) -> None:
  """Counts the steps of a kind in this process, and sends itself signals after the n-th."""
  from offload.actions import Actions
  from offload.state import State
  from offload.store import Store, StoreView

  within = {"load": True, "commit": False}
  seen, going = collections.Counter(), threading.Event()
  going.set()

  def note(what: str) -> None:
    seen[what] += 1
    if (what, seen[what]) == (kind, nth):
      threading.Thread(target=send, daemon=True).start()

  def send() -> None:
    time.sleep(delay)
    going.clear()  # no further step before the last signal: the run might end between two
    try:
      for number in signals[:-1]:
        kill(number)
        time.sleep(0.05)
      kill(signals[-1])
    finally:
      going.set()

  def kill(number: int) -> None:
    pathlib.Path(stamp).write_text(str(time.time()))
    os.kill(os.getpid(), number)

  def watch(owner, name: str, what) -> None:
    real = getattr(owner, name)

    def wrapped(*args, **kwargs):
      going.wait()
      out = real(*args, **kwargs)
      for word in what(*args):
        note(word)
      return out

    setattr(owner, name, wrapped)

  def of_step(_, step) -> list[str]:
    within["load"] = False
    return [step.computation.action.value if step.computation else "transfer"]

  stages = lambda *args: [stage for stage, on in within.items() if on]
  commit = State.commit

  def committing(*args):
    within["commit"] = True
    out = commit(*args)
    within["commit"] = False
    return out

  State.commit = committing
  watch(Actions, "perform", of_step)
  for owner, name in ((Store, "create"), (StoreView, "read"), (Store, "write")):
    watch(owner, name, stages)
  for name in ("replace", "unlink", "fsync"):
    watch(os, name, lambda *args: ["commit"] * within["commit"])


def child(order: str, flags: list[str]) -> None:
  """What a process of a chain does."""
  if order:
    arm(**json.loads(order))
  sys.argv = ["train", *flags]
  runpy.run_module("experiments.train", run_name="__main__")


def start(folder: pathlib.Path, order: dict | None) -> subprocess.CompletedProcess:
  words = [sys.executable, __file__, "--child", json.dumps(order) if order else ""]
  compiled = {
    "JAX_COMPILATION_CACHE_DIR": os.environ.get(
      "JAX_COMPILATION_CACHE_DIR", str(folder.parent / "compiled")
    ),
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    "JAX_PLATFORMS": "cpu",
  }
  return subprocess.run(
    [*words, *FLAGS, f"--workdir={folder}"],
    cwd=ROOT, env=os.environ | compiled, capture_output=True, text=True, timeout=300,
  )  # fmt: skip


def result(folder: pathlib.Path) -> dict:
  """Everything that has to be equal to the bit."""
  import jax
  import numpy as np

  from models.weights import checkpoint
  from offload import snapshot

  store = folder / "store"
  commit = snapshot.all_of(store)[-1]
  arrays = {}
  for name, record in commit.arrays.items():
    data = (store / f"{name}.{record.generation}" / "c/0").read_bytes()
    arrays[name] = data[: record.elements * np.dtype(record.dtype).itemsize]
  metrics = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
  assert [line["iteration"] for line in metrics] == list(range(ITERATIONS))
  parameters = jax.tree.leaves(checkpoint.load(folder / "checkpoint")[1])
  return {
    "losses": json.loads((folder / "summary.json").read_text())["losses"],
    "metrics": [line["loss"] for line in metrics],
    "scalars": commit.scalars,
    "iteration": commit.iteration,
    "arrays": arrays,
    "parameters": [np.asarray(leaf).tobytes() for leaf in parameters],
  }


FOREIGN = ("notes.txt", "store/notes.txt", "store/units/0/notes.txt", "store/commits/mine.json")


def chain(folder: pathlib.Path, ends: list[str], rng: random.Random) -> collections.Counter:
  """One run, ended as `ends` say one after another, then let alone; returns what was hit.

  KILL is a SIGKILL; TERM and INT ask for a graceful stop; TERM+INT asks and then insists.
  """
  hit = collections.Counter()
  for end in ends:
    signals = [getattr(signal, f"SIG{name}") for name in end.split("+")]
    kind = rng.choice([*MOMENTS]) if end == "KILL" else "backward"
    stamp = folder.with_suffix(".stamp")
    order = {"kind": kind, "nth": rng.randint(1, MOMENTS[kind]), "delay": rng.uniform(0, LATEST)}
    done = start(folder, order | {"signals": signals, "stamp": str(stamp)})
    ended = time.time()
    if done.returncode == 0:  # it was finished before the moment came
      break
    last = signals[-1]
    expected = -last if end == "KILL" else 128 + last
    assert done.returncode == expected, (end, order, done.returncode, done.stderr[-2000:])
    if end in ("TERM", "INT"):
      assert list((folder / "store/commits").glob("*.json")), "a graceful stop commits"
    if "+" in end:
      assert ended - float(stamp.read_text()) < 2, "the second signal ends at once"
    hit[f"{end} in {kind}" if end == "KILL" else end] += 1
    for name in FOREIGN:
      if (folder / name).parent.is_dir() and (folder / "flags.txt").exists():
        (folder / name).write_text(name)
  done = start(folder, None)
  finished = "checkpoint holds a checkpoint already" in done.stderr and done.returncode == 2
  assert done.returncode == 0 or finished, done.stderr[-2000:]
  for name in FOREIGN:
    assert not (folder / name).exists() or (folder / name).read_text() == name, name
  return hit


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
  parser.add_argument("--runs", type=int, default=50, help="processes to kill")
  parser.add_argument("--seed", type=int, default=0)
  parser.add_argument("--ends", default="", help="how one chain's processes end, with commas")
  options = parser.parse_args()
  rng, hits = random.Random(options.seed), collections.Counter()
  with tempfile.TemporaryDirectory() as folder:
    where = pathlib.Path(folder)
    unbroken = start(where / "unbroken", None)
    assert unbroken.returncode == 0, unbroken.stderr
    expected, number = result(where / "unbroken"), 0
    while not number or (not options.ends and sum(hits.values()) < options.runs):
      left = options.runs - sum(hits.values())
      ends = options.ends.split(",") if options.ends else ["KILL"] * min(5, left)
      hits += chain(where / f"run{number}", ends, rng)
      assert result(where / f"run{number}") == expected, f"chain {number} differs"
      number += 1
      print(f"{sum(hits.values())} ended so far, {number} runs equal to the bit", flush=True)
  print(json.dumps({"ended": dict(sorted(hits.items())), "runs": number}))


if __name__ == "__main__":
  if sys.argv[1:2] == ["--child"]:
    child(sys.argv[2], sys.argv[3:])
  else:
    main()
