"""Trains for many tiny iterations, and watches what the process holds.

    scripts/soak --iterations=20000

The first fifth of the iterations is left out. From then on the most memory in the later half may
exceed the most in the earlier one by `MEMORY`, and by `PER_ITERATION` for losses and seconds, which
are kept for the summary; threads and the store's disk by nothing, nor the fewest open files.
"""

import argparse
import contextlib
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).parents[2]
MEMORY, PER_ITERATION = 16 * 2**20, 512  # bytes
COMMIT_EVERY = 50
FLAGS = (
  "--model=bytes-tiny",
  *("--micro_batches=2", "--micro_batch_size=1", "--sequence_length=16"),
  *(f"--commit_every={COMMIT_EVERY}", "--evaluation_batches=0", "--delayed_fraction=0.25"),
  "--host_memory_budget=300KiB",
)


def held(process: int, store: pathlib.Path) -> dict[str, int]:
  """Bytes of memory, open files, threads, bytes on disk."""
  proc = pathlib.Path(f"/proc/{process}")
  fields = dict(line.split(":", 1) for line in (proc / "status").read_text().splitlines())
  disk = 0
  for path in store.rglob("*"):
    with contextlib.suppress(FileNotFoundError):  # it may have gone meanwhile
      disk += path.stat().st_blocks * 512 if path.parent.name == "c" else 0
  return {
    "memory": int(fields["VmRSS"].split()[0]) * 1024,
    "files": len(os.listdir(proc / "fd")),
    "threads": int(fields["Threads"]),
    "disk": disk,
  }


def watch(process: subprocess.Popen, folder: pathlib.Path) -> list[tuple[int, dict[str, int]]]:
  """What the process holds, by the iterations that it has behind it, as long as it trains."""
  seen, metrics = [], folder / "metrics.jsonl"
  while process.poll() is None:
    time.sleep(0.5)
    try:
      done = metrics.read_bytes().count(b"\n")
      if done:
        seen.append((done, held(process.pid, folder / "store")))
    except (FileNotFoundError, ProcessLookupError, KeyError):
      pass
  return seen


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
  parser.add_argument("--iterations", type=int, default=20_000)
  total = parser.parse_args().iterations
  with tempfile.TemporaryDirectory() as temporary:
    folder = pathlib.Path(temporary) / "run"
    words = ["-m", "experiments.train", *FLAGS, f"--iterations={total}", f"--workdir={folder}"]
    process = subprocess.Popen([sys.executable, *words], cwd=ROOT, stdout=subprocess.DEVNULL)
    seen = [(done, what) for done, what in watch(process, folder) if done < total]
    assert process.returncode == 0, "the run did not end well"
  steady = [(done, what) for done, what in seen if done >= total / 5]
  half = len(steady) // 2
  (first, _), (last, _) = steady[0], steady[-1]
  # Files are open while they are read or written: those that stay are the fewest that were seen.
  of = lambda name, part: (min if name == "files" else max)(what[name] for _, what in part)
  growth = {name: of(name, steady[half:]) - of(name, steady[:half]) for name in seen[0][1]}
  allowed = {"memory": MEMORY + PER_ITERATION * (last - first), "files": 0, "threads": 0, "disk": 0}
  print(json.dumps({"from": first, "to": last, "first": steady[0][1], "growth": growth}))
  for name, bound in allowed.items():
    assert growth[name] <= bound, f"{name} grew by {growth[name]}, more than {bound}"


if __name__ == "__main__":
  main()
