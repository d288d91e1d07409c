"""Runs of programs that a table is made of, each in a process of its own, taken in turn.

A run's folder is `<folder>/<name>.<round>`; it keeps its flags and its summary, which has the
process's peak memory beside it, in outside.json. `<folder>` has a flags.txt that says whose it is.
"""

import json
import os
import re
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
_OWNER, _COMPILED = "tables", "compiled"
_RUN = re.compile(r"[\w-]+\.\d+(\.txt)?")  # a run's folder, or what its process says
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
  """Raises ValueError where the folder is a file, or holds anything but an earlier measurement."""
  if folder.exists() and not folder.is_dir():
    raise ValueError(f"--runs={folder.parent} holds a file {folder.name}; name another folder.")
  try:
    run_log.check_workdir(folder, _OWNER)
    strange = next((path.name for path in _entries(folder) if not _is_ours(path)), None)
  except ValueError:
    strange = "files"
  if strange:
    raise ValueError(
      f"{folder} holds {strange} that no table's measurement made: name another folder with --runs,"
      f" or remove {folder} yourself."
    )


def measure(folder: Path, runs: dict[str, Run], rounds: int) -> None:
  """Makes every run `rounds` times: round by round, so that a machine's moods meet all of them.

  The runs of an earlier measurement are removed. Programs that have been compiled in one run are
  not compiled again in the next.

  Raises:
    Mistake: `check` refuses the folder, or a run did not end well; with its last line.
  """
  with program.mistakes():
    check(folder)
  for path in _entries(folder):
    shutil.rmtree(path) if path.is_dir() else path.unlink()
  folder.mkdir(parents=True, exist_ok=True)
  run_log.write_text(folder / run_log.FLAGS_FILE, program.flag_file(_OWNER))
  compiled = {
    "JAX_COMPILATION_CACHE_DIR": str((folder / _COMPILED).absolute()),
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
  }
  todo = [(f"{name}.{i}", run) for i in range(rounds) for name, run in runs.items()]
  for name, run in tqdm(todo, desc=folder.name, unit="run", disable=None):
    _run(folder / name, run, {**os.environ, **compiled})
  shutil.rmtree(folder / _COMPILED, ignore_errors=True)


def read(folder: Path) -> dict[str, list[dict[str, Any]]]:
  """Summaries of the finished runs by name, `peak_resident_bytes` among their fields."""
  found: dict[str, list[dict[str, Any]]] = {}
  for path in sorted(folder.glob(f"*/{OUTSIDE_FILE}")):
    summary = run_log.read_summary(path.parent) | json.loads(path.read_text())
    found.setdefault(path.parent.name.rpartition(".")[0], []).append(summary)
  return found


def flags_of(folder: Path) -> dict[str, str]:
  """The flags in the folder's flags.txt that have a value, by their names; none without it."""
  given = (line.removeprefix("--").partition("=") for line in _lines(folder) if line[:2] == "--")
  return {name: value for name, equals, value in given if equals}


def settings_text(folder: Path) -> str:
  """What the runs in a table's folder were, for its notes: model, tokens, rounds, and if short."""
  made = [path.parent for path in folder.glob(f"*/{OUTSIDE_FILE}")]
  if not made:
    return "Nothing is measured: give --measure."
  flags = [flags_of(run) for run in made]
  models = sorted({each["model"] for each in flags if "model" in each})
  names = ("micro_batch_size", "sequence_length")
  tokens = sorted({tuple(int(f[name]) for name in names) for f in flags if set(names) <= set(f)})
  rounds = len({run.suffix for run in made})
  text = f"Runs of {' and '.join(models)}" * bool(models) or "Runs"
  if tokens:
    text += ", micro-batches of " + " or ".join(f"{b} x {s}" for b, s in tokens) + " tokens"
  text += f"; {rounds} round{'s' * (rounds > 1)}."
  if "--quick" in _lines(folder):
    text += " With --quick: settings that show that it works, not what it can."
  return text


def _lines(folder: Path) -> list[str]:
  path = folder / run_log.FLAGS_FILE
  return path.read_text().splitlines() if path.is_file() else []


def _entries(folder: Path) -> list[Path]:
  """What lies in a folder beside its flag file."""
  if not folder.is_dir():
    return []
  return [path for path in folder.iterdir() if not path.name.startswith(run_log.FLAGS_FILE)]


def _is_ours(path: Path) -> bool:
  """Whether it is a run's, by its name and its kind; never a link, whatever it points to."""
  named = path.name == _COMPILED or _RUN.fullmatch(path.name)
  return bool(named) and not path.is_symlink() and path.is_dir() != path.name.endswith(".txt")


def _run(folder: Path, run: Run, environment: dict[str, str]) -> None:
  words = [sys.executable, "-m", f"experiments.{run.program}", *run.flags, f"--workdir={folder}"]
  output = folder.with_suffix(folder.suffix + ".txt")
  with open(output, "w") as file:
    process = subprocess.Popen(words, stdout=file, stderr=subprocess.STDOUT, env=environment)
    try:
      peak = max(resident_peaks(process), default=0)
    finally:
      process.kill()
      process.wait()
  if process.returncode:
    last = output.read_text(errors="replace").strip().splitlines()[-1:]
    raise program.Mistake(f"--measure: {folder.name} ended badly: {' '.join(last)}")
  shutil.rmtree(folder / "checkpoint", ignore_errors=True)
  output.unlink()
  run_log.write_json(folder / OUTSIDE_FILE, {"peak_resident_bytes": peak})


def resident_peaks(process: subprocess.Popen) -> Iterator[int]:
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
