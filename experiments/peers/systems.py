"""The systems that are compared: how each is started, and what its run says of itself."""

import dataclasses
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from experiments import program, run_log
from experiments.peers.job import Job

_LONGEST = 3600  # seconds of one run; what takes longer hangs
_TORCH_PROGRAM = Path("scripts/peers/train.py")


@dataclasses.dataclass(frozen=True)
class Place:
  """Where one run of one system happens.

  Attributes:
    job: folder with the job's files.
    scratch: empty folder on the disk that is compared; removed after the run.
    host_memory_budget: of ours, in bytes.
    peers_python: interpreter of the peers' environment.
  """

  job: Path
  scratch: Path
  host_memory_budget: int
  peers_python: str


@dataclasses.dataclass(frozen=True)
class System:
  """A command for a run, and how its result is read: losses, seconds_per_iteration, ..."""

  title: str
  command: Callable[[Job, Place], list[str]]
  read: Callable[[Path], dict[str, Any]]


def _train(schedule: str) -> Callable[[Job, Place], list[str]]:
  def command(job: Job, place: Place) -> list[str]:
    streamed = [
      "--direct_io",
      f"--host_memory_budget={program.size_text(place.host_memory_budget)}",
    ]
    return [
      *(sys.executable, "-m", "experiments.train", f"--model={job.model}"),
      f"--schedule={schedule}",
      *(streamed if schedule != "in_memory" else []),
      f"--micro_batches={job.micro_batches}",
      f"--micro_batch_size={job.micro_batch_size}",
      f"--sequence_length={job.sequence_length}",
      f"--iterations={job.iterations}",
      f"--learning_rate={job.learning_rate}",
      *("--warmup=0", f"--weight_decay={job.weight_decay}", f"--seed={job.seed}"),
      *(f"--data={job.data}", "--evaluation_batches=0"),
      f"--store={place.scratch / 'store'}",
      f"--workdir={place.scratch / 'run'}",
    ]

  return command


def _read_train(scratch: Path) -> dict[str, Any]:
  summary = run_log.read_summary(scratch / "run")
  count = len(summary["losses"])
  moved = {link: summary["bytes"][link] / count for link in ("ssd_read", "ssd_written")}
  kept = ("losses", "seconds_per_iteration", "homes", "predicted_seconds_per_iteration")
  return {**{field: summary[field] for field in kept}, "bytes_per_iteration": [moved] * count}


def _torch(engine: str) -> Callable[[Job, Place], list[str]]:
  return lambda job, place: [
    *(place.peers_python, str(_TORCH_PROGRAM), engine),
    *(str(place.job), str(place.scratch)),
  ]


def _read_torch(scratch: Path) -> dict[str, Any]:
  return json.loads((scratch / "result.json").read_text())


SYSTEMS = {
  "ours": System("ours, from SSD", _train("vertical"), _read_train),
  "zero_infinity": System("ZeRO-Infinity", _torch("zero_infinity"), _read_torch),
  "jax": System("JAX in memory", _train("in_memory"), _read_train),
  "torch": System("PyTorch in memory", _torch("memory"), _read_torch),
}


def run(system: System, job: Job, place: Place) -> dict[str, Any]:
  """Runs a system once in a process of its own, and reads its result.

  A run that fails gives {"failed": its last line} in place of a result: a peer that breaks on this
  machine must not hide what the others do.
  """
  failed = failure(system.command(job, place), place.scratch / "output.txt")
  return {"failed": failed} if failed else system.read(place.scratch)


def failure(command: list[str], log: Path) -> str | None:
  """Runs a command to its end, its output in `log`; None, or the last line of one that failed."""
  with open(log, "w") as out:
    process = subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT)
    try:
      code = process.wait(timeout=_LONGEST)
    except subprocess.TimeoutExpired:
      return f"no end after {_LONGEST} s"
    finally:
      process.kill()
      process.wait()
  if not code:
    return None
  lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
  return lines[-1].strip() if lines else f"exit code {code}"


def default_python() -> str:
  """The peers' interpreter that scripts/peers/zero_infinity makes for this version of Python."""
  version = f"{sys.version_info.major}.{sys.version_info.minor}"
  return os.path.join(f".venv-peers-{version}", "bin", "python")
