"""Runs parts one after the other, each command in a process of its own, within a time for all.

Nothing here touches a device: a process that did would hold its memory for as long as it lives.
"""

import dataclasses
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

GRACE = 5  # seconds between asking a process to end and ending it


@dataclasses.dataclass(frozen=True)
class Part:
  """Commands that belong together.

  Attributes:
    name: of its log file.
    says: what it does.
    seconds: the share of time that it is given; what the parts before it left over is added.
    commands: arguments of python; a command runs whatever became of the one before it.
    environment: variables of its commands, over those of all parts.
  """

  name: str
  says: str
  seconds: int
  commands: tuple[tuple[str, ...], ...]
  environment: Mapping[str, str] = dataclasses.field(default_factory=dict)

  def runs(self) -> Iterator[tuple[str, str]]:
    """The work folder and the program's name of each command that is one of our programs."""
    for command in self.commands:
      for word in command:
        if word.startswith("--workdir="):
          yield word.removeprefix("--workdir="), command[1].removeprefix("experiments.")


def run(
  parts: list[Part], folder: Path, seconds: float, environment: Mapping[str, str]
) -> Iterator[dict[str, Any]]:
  """Runs the parts in their order; yields what became of each as soon as it has ended.

  The result holds the part's name, `status` (passed, failed, timed out), its seconds and those it
  was allowed, and its commands with their exit codes (None where it was ended) and last words. The
  output of all its commands is in `<folder>/<name>.log`.
  """
  end = time.monotonic() + seconds
  for i, part in enumerate(parts):
    left = max(end - time.monotonic(), 1.0)
    allowed = left * part.seconds / sum(later.seconds for later in parts[i:])
    every = {**environment, **part.environment}
    yield _run_part(part, folder / f"{part.name}.log", allowed, every)


def _run_part(
  part: Part, log: Path, allowed: float, environment: Mapping[str, str]
) -> dict[str, Any]:
  start, done = time.monotonic(), []
  log.unlink(missing_ok=True)
  for command in part.commands:
    left = start + allowed - time.monotonic()
    code = _run_command(command, log, left, environment) if left > 0 else None
    done.append({"command": shlex.join(command), "exit_code": code, "said": _last_line(log)})
  codes = [command["exit_code"] for command in done]
  status = "timed out" if None in codes else "failed" if any(codes) else "passed"
  return {
    "part": part.name,
    "status": status,
    "seconds": time.monotonic() - start,
    "allowed_seconds": allowed,
    "commands": done,
  }


def _run_command(
  command: tuple[str, ...], log: Path, limit: float, environment: Mapping[str, str]
) -> int | None:
  """The exit code, or None if the command, with all that it started, was ended at the limit."""
  with open(log, "a") as output:
    output.write(f"$ python {shlex.join(command)}\n")
    output.flush()
    process = subprocess.Popen(
      [sys.executable, *command],
      stdout=output,
      stderr=subprocess.STDOUT,
      env={**os.environ, **environment},
      start_new_session=True,  # so that what it starts ends with it
    )
    try:
      return process.wait(limit)
    except subprocess.TimeoutExpired:
      output.write(f"ended after {limit:.0f} s\n")
      return None
    finally:
      _end(process)


def _end(process: subprocess.Popen) -> None:
  """Ends the process and its children, if any is left: first politely, then not."""
  for asked in (signal.SIGTERM, signal.SIGKILL):
    try:
      os.killpg(process.pid, asked)
    except ProcessLookupError:
      break
    try:
      process.wait(GRACE)
    except subprocess.TimeoutExpired:
      continue
  process.wait()


def _last_line(log: Path) -> str:
  text = log.read_text(errors="replace") if log.exists() else ""
  lines = [line for line in text.splitlines() if line.strip()]
  return lines[-1][:300] if lines else ""
