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

FLAGS_FILE, METRICS_FILE, SUMMARY_FILE = "flags.txt", "metrics.jsonl", "summary.json"


def check_workdir(workdir: str | os.PathLike, program_name: str) -> Path:
  """The folder as a Path, if a run of this program may write there; touches nothing.

  Raises ValueError for a file, for a folder of another program, and for one with unknown files.
  """
  path = Path(workdir)
  if path.exists() and not path.is_dir():
    raise ValueError(f"--workdir={workdir} is a file; name a folder.")
  if not path.is_dir() or not any(path.iterdir()):
    return path
  flags_file = path / FLAGS_FILE
  first = flags_file.read_text().partition("\n")[0] if flags_file.is_file() else ""
  if first == program.flag_file(program_name).partition("\n")[0]:
    return path
  holds = f"a run of {first.split('.')[-1]}" if first else "files that are no run's"
  raise ValueError(f"--workdir={workdir} holds {holds}; name an empty or a new folder.")


@dataclasses.dataclass(frozen=True)
class RunLog:
  """The files of one run. Make it by `RunLog.start` once nothing can be refused any more."""

  workdir: Path
  program: str
  started: float  # time.time() at the start

  @classmethod
  def start(cls, workdir: str | os.PathLike, program_name: str) -> "RunLog":
    """Makes the folder, writes flags.txt, empties metrics.jsonl and removes an old summary.

    Raises `program.Mistake` where `check_workdir` refuses.
    """
    with program.mistakes():
      path = check_workdir(workdir, program_name)
      path.mkdir(parents=True, exist_ok=True)
      (path / FLAGS_FILE).write_text(program.flag_file(program_name))
    (path / METRICS_FILE).write_text("")
    (path / SUMMARY_FILE).unlink(missing_ok=True)
    return cls(path, program_name, time.time())

  def metric(self, **values: Any) -> None:
    """Appends one line to metrics.jsonl; arrays become lists, numbers that are not finite null."""
    line = json.dumps({"seconds": round(time.time() - self.started, 3), **_plain(values)})
    with open(self.workdir / METRICS_FILE, "a") as file:
      file.write(line + "\n")

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
    print(f"{self.program}: {closing}; see {self.workdir / SUMMARY_FILE}", flush=True)


def write_json(path: Path, value: Any) -> None:
  """Writes JSON beside `path` and renames it into place, so that no reader sees half a file."""
  beside = path.with_name(path.name + ".tmp")
  beside.write_text(json.dumps(_plain(value), indent=2) + "\n")
  beside.replace(path)


def read_metrics(workdir: str | os.PathLike) -> list[dict[str, Any]]:
  """The lines of a run's metrics.jsonl."""
  text = (Path(workdir) / METRICS_FILE).read_text()
  return [json.loads(line) for line in text.splitlines()]


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
