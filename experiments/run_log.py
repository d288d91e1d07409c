"""A run's folder: flags.txt, metrics.jsonl, summary.json, and what else the program leaves there.

`flags.txt` names the program that the folder belongs to. A folder that holds anything but has no
such file, or names another program, is refused; a run of the same program replaces its own files.
"""

import dataclasses
import json
import math
import os
import time
from pathlib import Path
from typing import Any

from experiments import machine, program
from offload import lock
from offload.durable import BESIDE, make_folders, naming, sync_folders, write_whole

FLAGS_FILE, METRICS_FILE, SUMMARY_FILE = "flags.txt", "metrics.jsonl", "summary.json"


def check_workdir(workdir: str | os.PathLike, program_name: str) -> Path:
  """The folder as a Path, if a run of this program may write there; touches nothing.

  Raises ValueError for a file, for a folder of another program, and for one with unknown files.
  """
  path = Path(workdir)
  if path.exists() and not path.is_dir():
    raise ValueError(f"--workdir={workdir} is a file; name a folder.")
  ours = (lock.NAME, f"{FLAGS_FILE}{BESIDE}")  # all that a run killed at its start may leave
  if not path.is_dir() or not any(entry.name not in ours for entry in path.iterdir()):
    return path
  flags_file = path / FLAGS_FILE
  first = flags_file.read_text().partition("\n")[0] if flags_file.is_file() else ""
  if first == program.flag_file(program_name).partition("\n")[0]:
    return path
  holds = f"a run of {first.split('.')[-1]}" if first else "files that are no run's"
  raise ValueError(f"--workdir={workdir} holds {holds}; name an empty or a new folder.")


@dataclasses.dataclass(frozen=True)
class RunLog:
  """The files of one run. Make it by `RunLog.start` once nothing can be refused any more, or by
  `RunLog.claim` where that takes more locks, and `begin` once it cannot."""

  workdir: Path
  program: str
  started: float  # time.time() at the start
  held: lock.Lock  # no other run writes into the folder

  @classmethod
  def start(cls, workdir: str | os.PathLike, program_name: str) -> "RunLog":
    """Claims the folder and begins anew. Raises as `claim` does."""
    log = cls.claim(workdir, program_name)
    log.begin()
    return log

  @classmethod
  def claim(cls, workdir: str | os.PathLike, program_name: str) -> "RunLog":
    """Makes the folder, where it is not there, and this run's alone; what an earlier run has left
    in it stays as it is.

    Raises `program.Mistake` where `check_workdir` refuses, or another run uses the folder.
    """
    with program.mistakes():
      path = check_workdir(workdir, program_name)
      make_folders(path)
      log = cls(path, program_name, time.time(), lock.Lock(path, "--workdir"))
      if not (path / FLAGS_FILE).exists():  # before anything else that would make it a stranger's
        write_text(path / FLAGS_FILE, program.flag_file(program_name))
    return log

  def begin(self, kept: int = 0) -> None:
    """Writes flags.txt, and removes an old summary and old metrics: all but the lines of the first
    `kept` iterations, where a run goes on.

    Raises `program.Mistake` where these are not there.
    """
    with program.mistakes():
      lines = first_lines(self.workdir, kept)
      write_text(self.workdir / FLAGS_FILE, program.flag_file(self.program))
    (self.workdir / SUMMARY_FILE).unlink(missing_ok=True)
    kept_text = "".join(json.dumps(line) + "\n" for line in lines)
    write_text(self.workdir / METRICS_FILE, kept_text)

  def metric(self, **values: Any) -> None:
    """Appends one line to metrics.jsonl; arrays become lists, numbers that are not finite null."""
    line = json.dumps({"seconds": round(time.time() - self.started, 3), **_plain(values)})
    path = self.workdir / METRICS_FILE
    with naming(path), path.open("a") as file:
      file.write(line + "\n")

  def sync(self) -> None:
    """Forces the metrics to the disk, so that a commit finds what led to it."""
    path = self.workdir / METRICS_FILE
    with naming(path), path.open("a") as file:
      os.fsync(file.fileno())
    sync_folders(self.workdir, self.workdir)

  def finish(self, summary: dict[str, Any], closing: str = "done") -> None:
    """Writes summary.json in one piece and prints the closing line.

    The program's name, the machine and the run's seconds are added to `summary`.
    """
    common = {
      "program": self.program,
      "machine": machine.describe(),
      "run_seconds": time.time() - self.started,
    }
    write_json(self.workdir / SUMMARY_FILE, common | summary)
    self.held.release()
    print(f"{self.program}: {closing}; see {self.workdir / SUMMARY_FILE}", flush=True)


def write_json(path: Path, value: Any) -> None:
  """Writes JSON beside `path` and renames it into place, so that no reader sees half a file."""
  write_text(path, json.dumps(_plain(value), indent=2) + "\n")


def write_text(path: Path, text: str) -> None:
  """As `write_json`."""
  write_whole(path, text.encode())


def read_metrics(workdir: str | os.PathLike) -> list[dict[str, Any]]:
  """The lines of a run's metrics.jsonl, but for a last one that a killed run left unfinished."""
  lines = (Path(workdir) / METRICS_FILE).read_text().split("\n")[:-1]
  return [json.loads(line) for line in lines]


def first_lines(workdir: Path, count: int) -> list[dict[str, Any]]:
  """Of the first `count` iterations; whatever follows them may be damaged.

  Raises ValueError where one is missing.
  """
  path = workdir / METRICS_FILE
  texts = path.read_text(errors="replace").split("\n")[:count] if path.is_file() else []
  try:
    lines = [json.loads(text) for text in texts]
    numbers = [line["iteration"] for line in lines]
  except (ValueError, KeyError, TypeError):
    numbers = None
  if numbers != list(range(count)):
    raise ValueError(
      f"{path} does not hold the {count} iterations of the run that would go on: give the --workdir"
      " that this --store was begun with, or name an empty folder for each."
    )
  return lines


def read_summary(workdir: str | os.PathLike) -> dict[str, Any]:
  """A finished run's summary. Raises ValueError if the folder holds none."""
  path = Path(workdir) / SUMMARY_FILE
  if not path.is_file():
    raise ValueError(f"{workdir} holds no finished run: there is no {SUMMARY_FILE} in it.")
  return json.loads(path.read_text())


def _plain(value: Any) -> Any:
  """Python's own types all the way down, so that JSON can say them."""
  if isinstance(value, dict):
    return {str(key): _plain(item) for key, item in value.items()}
  if isinstance(value, list | tuple):
    return [_plain(item) for item in value]
  if hasattr(value, "tolist"):  # numpy and JAX arrays and scalars
    return _plain(value.tolist())
  if isinstance(value, os.PathLike):
    return os.fspath(value)
  if isinstance(value, float) and not math.isfinite(value):
    return None
  return value
