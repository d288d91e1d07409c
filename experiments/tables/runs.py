"""Runs of programs that a table is made of, each in a process of its own, taken in turn.

A run's folder is `<folder>/<name>.<round>`; it keeps its flags and its summary, which has the
process's peak memory beside it, in outside.json.
"""

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from tqdm import tqdm

from experiments import program, run_log

OUTSIDE_FILE = "outside.json"
# Flags that shorten a table's runs until they only show that they work.
QUICK = (
  "--model=bytes-tiny",
  "--sequence_length=32",
  "--iterations=4",
  "--host_memory_budget=1MiB",
)
_SAMPLING_SECONDS = 0.02


class Run(NamedTuple):
  """`python -m experiments.<program>` with some flags; the folder's are added."""

  flags: tuple[str, ...]
  program: str = "train"


def check(folder: Path) -> None:
  """Raises ValueError where a file is in the way of the folder."""
  if folder.exists() and not folder.is_dir():
    raise ValueError(f"--runs={folder.parent} holds a file {folder.name}; name another folder.")


def measure(folder: Path, runs: dict[str, Run], rounds: int) -> None:
  """Makes every run `rounds` times: round by round, so that a machine's moods meet all of them.

  Programs that have been compiled in one run are not compiled again in the next.

  Raises:
    Mistake: a run did not end well; with its last line.
  """
  shutil.rmtree(folder, ignore_errors=True)
  folder.mkdir(parents=True)
  compiled = {
    "JAX_COMPILATION_CACHE_DIR": str((folder / "compiled").absolute()),
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
  }
  todo = [(f"{name}.{i}", run) for i in range(rounds) for name, run in runs.items()]
  for name, run in tqdm(todo, desc=folder.name, unit="run", disable=None):
    _run(folder / name, run, {**os.environ, **compiled})
  shutil.rmtree(folder / "compiled", ignore_errors=True)


def read(folder: Path) -> dict[str, list[dict[str, Any]]]:
  """Summaries of the finished runs by name, `peak_resident_bytes` among their fields."""
  found: dict[str, list[dict[str, Any]]] = {}
  for path in sorted(folder.glob(f"*/{OUTSIDE_FILE}")):
    summary = run_log.read_summary(path.parent) | json.loads(path.read_text())
    found.setdefault(path.parent.name.rpartition(".")[0], []).append(summary)
  return found


def _run(folder: Path, run: Run, environment: dict[str, str]) -> None:
  words = [sys.executable, "-m", f"experiments.{run.program}", *run.flags, f"--workdir={folder}"]
  output = folder.with_suffix(folder.suffix + ".txt")
  with open(output, "w") as file:
    process = subprocess.Popen(words, stdout=file, stderr=subprocess.STDOUT, env=environment)
    try:
      peak = max(_resident_peaks(process), default=0)
    finally:
      process.kill()
      process.wait()
  if process.returncode:
    last = output.read_text(errors="replace").strip().splitlines()[-1:]
    raise program.Mistake(f"--measure: {folder.name} ended badly: {' '.join(last)}")
  shutil.rmtree(folder / "checkpoint", ignore_errors=True)
  output.unlink()
  run_log.write_json(folder / OUTSIDE_FILE, {"peak_resident_bytes": peak})


def _resident_peaks(process: subprocess.Popen) -> Iterator[int]:
  """What the system says of the most memory that a process had, as long as it lives."""
  while process.poll() is None:
    try:
      status = Path(f"/proc/{process.pid}/status").read_text()
    except OSError:  # no such file system, or the process has ended
      status = ""
    for line in status.splitlines():
      if line.startswith("VmHWM:"):
        yield int(line.split()[1]) * 1024
    time.sleep(_SAMPLING_SECONDS)
